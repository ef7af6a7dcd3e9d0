"""A private adapter made ready: A in a random basis as integers, B in the inverse basis, and its digest.

B A = (B G^T)(G A) for an orthogonal G, drawn per module and epoch. The adapter holder keeps round(G A /
scales), the key holder gets B' = (alpha / r) B G^T diag(scales). The adapter that is served, in clear
terms, is B' A_q.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensafe.contracts.errors import InvalidRequest
from tensafe.privacy.noise import gaussian
from tensafe_gpu.helora.keystream import derived_key
from tensafe_gpu.helora.parameters import MAX_D_IN, MAX_ROWS, PARAMETERS
from tensafe_gpu.helora.ports import AdapterInfo, Float32Array, ModuleShape, SiteId, SiteShape
from tensafe_gpu.helora.quantise import Float64Array, Int16Array, quantised_rows


@dataclass(frozen=True, slots=True)
class LoraModule:
    """A module's pair as trained: a [rank, d_in], b [d_out, rank], the factor `scaling` = alpha / r."""

    name: str
    a: Float64Array
    b: Float64Array
    scaling: float


@dataclass(frozen=True, slots=True)
class LoraSite:
    """The modules that read one layer input."""

    site: SiteId
    modules: tuple[LoraModule, ...]


@dataclass(frozen=True, slots=True)
class ServedSite:
    """A site in one epoch: a int16 [R, d_in] for the adapter holder, b float32 by module for the key
    holder.
    """

    shape: SiteShape
    a: Int16Array
    b: dict[str, Float32Array]
    bits: int
    error_a: float
    error_x: float


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """What the adapter holder serves in one epoch."""

    info: AdapterInfo
    sites: dict[SiteId, ServedSite]


@dataclass(frozen=True, slots=True)
class Naming:
    """Of which adapter, in which epoch, for how many tokens per site."""

    name: str
    version: int
    epoch: int
    base_model: str
    tokens_per_site: int


def serve(sites: Sequence[LoraSite], naming: Naming, basis_secret: bytes) -> ServedAdapter:
    """The epoch's form of an adapter; equal arguments give equal bytes on one machine.

    `basis_secret` (32 bytes) never leaves the adapter holder. Raises InvalidRequest for sites that do not
    fit.
    """
    served = {site.site: _served_site(site, naming.epoch, basis_secret) for site in sites}
    if not served or len(served) != len(sites):
        raise InvalidRequest("an adapter needs at least one site, and each of them once", field="sites")
    return ServedAdapter(info_of(served, naming), served)


def info_of(served: dict[SiteId, ServedSite], naming: Naming) -> AdapterInfo:
    """What the key holder is told of it."""
    return AdapterInfo(
        name=naming.name,
        version=naming.version,
        digest=digest_of(served, naming.base_model),
        epoch=naming.epoch,
        base_model=naming.base_model,
        sites=tuple(site.shape for site in served.values()),
        parameters=PARAMETERS,
        tokens_per_site=naming.tokens_per_site,
    )


def digest_of(served: dict[SiteId, ServedSite], base_model: str) -> str:
    """SHA-256 (hex) of everything that decides the adapter's numbers, sites in the order of their names."""
    digest = hashlib.sha256(json.dumps(["tensafe-helora-adapter", 1, PARAMETERS, base_model]).encode())
    for name in sorted(served):
        site = served[name]
        modules = [[module.name, module.rank, module.d_out] for module in site.shape.modules]
        digest.update(json.dumps([name, site.shape.d_in, site.shape.x_bound, modules]).encode())
        digest.update(site.a.astype("<i2").tobytes())
        for module in site.shape.modules:
            digest.update(site.b[module.name].astype("<f4").tobytes())
    return digest.hexdigest()


def orthogonal(secret: bytes, epoch: int, site: SiteId, module: str, rank: int) -> Float64Array:
    """A random orthogonal matrix float64 [rank, rank], Haar distributed: QR of Gaussians with fixed signs."""
    key = derived_key(secret, "basis", epoch, site, module)
    normals: npt.NDArray[np.float64] = gaussian(key, 0, rank * rank, 1.0).reshape(rank, rank)
    q, r = np.linalg.qr(normals)
    return np.ascontiguousarray(q * np.sign(np.diagonal(r)))


def _served_site(site: LoraSite, epoch: int, secret: bytes) -> ServedSite:
    widths = {module.a.shape[1] for module in site.modules}
    rows = sum(module.a.shape[0] for module in site.modules)
    if len(widths) != 1 or max(widths) > MAX_D_IN or not 0 < rows <= MAX_ROWS:
        raise InvalidRequest(f"the modules of {site.site} do not read one input of a size that is served")
    bases = [orthogonal(secret, epoch, site.site, one.name, one.a.shape[0]) for one in site.modules]
    turned = [basis @ one.a for basis, one in zip(bases, site.modules, strict=True)]
    rounded = quantised_rows(np.concatenate(turned))
    shape = SiteShape(
        site.site,
        widths.pop(),
        tuple(ModuleShape(one.name, one.a.shape[0], one.b.shape[0]) for one in site.modules),
        rounded.x_bound,
    )
    b = {}
    for basis, one in zip(bases, site.modules, strict=True):
        if one.b.shape[1:] != one.a.shape[:1] or not np.isfinite(one.b).all():
            raise InvalidRequest(f"B of {one.name} has another rank than A, or is not finite", field="lora_B")
        scales = rounded.scales[shape.rows(one.name)]
        with np.errstate(over="ignore"):  # what leaves float32 is not published
            b[one.name] = (one.scaling * (one.b @ basis.T) * scales).astype(np.float32)
    return ServedSite(shape, rounded.a, b, rounded.bits, rounded.error_a, rounded.error_x)
