"""An adapter in the form of one epoch, as bytes to be sealed."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import safetensors
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from tensafe.contracts.errors import IntegrityError
from tensafe_gpu.helora.adapter import Naming, ServedAdapter, ServedSite, info_of
from tensafe_gpu.helora.messages import SiteMessage
from tensafe_gpu.helora.ports import ModuleShape, SiteShape

_HEAD: Final = "head"


def to_bytes(adapter: ServedAdapter) -> bytes:
    """Everything that is served in its epoch."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, site in adapter.sites.items():
        tensors[f"{name}|a"] = site.a
        for module, b in site.b.items():
            tensors[f"{name}|b|{module}"] = b
    head = [
        {
            "site": shape.site,
            "d_in": shape.d_in,
            "x_bound": shape.x_bound,
            "modules": [{"name": one.name, "rank": one.rank, "d_out": one.d_out} for one in shape.modules],
        }
        for shape in adapter.info.sites
    ]
    errors = {name: [site.bits, site.error_a, site.error_x] for name, site in adapter.sites.items()}
    text = json.dumps({"sites": head, "errors": errors}).encode()
    tensors[_HEAD] = np.frombuffer(text, dtype=np.uint8)
    return save_tensors(tensors)


def from_bytes(content: bytes, naming: Naming, digest: str) -> ServedAdapter:
    """Raises IntegrityError unless it is whole and has this digest."""
    try:
        tensors = load_tensors(content)
        head = json.loads(tensors[_HEAD].tobytes())
        sites = {}
        for fields in head["sites"]:
            message = SiteMessage.model_validate(fields)
            modules = tuple(ModuleShape(one.name, one.rank, one.d_out) for one in message.modules)
            shape = SiteShape(message.site, message.d_in, modules, message.x_bound)
            b = {one.name: tensors[f"{shape.site}|b|{one.name}"] for one in modules}
            bits, error_a, error_x = head["errors"][shape.site]
            sites[shape.site] = ServedSite(shape, tensors[f"{shape.site}|a"], b, bits, error_a, error_x)
        info = info_of(sites, naming)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError("a stored adapter cannot be read") from error
    if info.digest != digest:
        raise IntegrityError("a stored adapter does not have its digest")
    return ServedAdapter(info, sites)
