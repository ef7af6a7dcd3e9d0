"""A trained adapter in the layout of PEFT, as the sites of the protocol. numpy alone: no torch here."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe_gpu.helora.adapter import LoraModule, LoraSite
from tensafe_gpu.helora.parameters import MAX_RANK
from tensafe_gpu.peft_settings import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_settings,
    configuration_among,
    rank_and_alpha,
)

_TENSOR: Final = re.compile(
    r"base_model\.model\.(model\.layers\.(?:0|[1-9][0-9]{0,4})\.[a-z_.]+)\.lora_([AB])\.weight"
)
_DTYPES: Final = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""As safetensors names what is served, and numpy its bytes."""
_SITES: Final = {
    "self_attn.q_proj": "self_attn.qkv",
    "self_attn.k_proj": "self_attn.qkv",
    "self_attn.v_proj": "self_attn.qkv",
    "self_attn.o_proj": "self_attn.o",
    "mlp.gate_proj": "mlp.gate_up",
    "mlp.up_proj": "mlp.gate_up",
    "mlp.down_proj": "mlp.down",
}
"""Projections and the layer input that they read; modules of one input are stacked in this order."""


def read_peft(files: Mapping[str, bytes]) -> list[LoraSite]:
    """The sites of an adapter's two files, in the order of the layers.

    Raises InvalidRequest for files that cannot be read or hold values that are not finite; Unsupported,
    with the name, for sites, dtypes and variants of LoRA that the protocol does not serve.
    """
    rank, scaling = _rank_and_scaling(configuration_among(files))
    try:
        tensors = dict(deserialize(files[WEIGHTS_FILE]))  # type: ignore[no-untyped-call]
    except KeyError as error:
        raise InvalidRequest(f"{WEIGHTS_FILE} is missing", field=WEIGHTS_FILE) from error
    except (SafetensorError, TypeError, ValueError) as error:
        raise InvalidRequest(f"{WEIGHTS_FILE} is unreadable", field=WEIGHTS_FILE) from error
    pairs: dict[str, dict[str, npt.NDArray[np.float64]]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or _leaf(match[1]) not in _SITES:
            raise Unsupported(
                f"{name[:200]} cannot be served privately: attention and MLP projections alone can; train "
                "with train_unembed=False",
                field=WEIGHTS_FILE,
            )
        pairs[match[1]][match[2]] = _matrix(name, tensor)
    if not pairs:
        raise InvalidRequest("the adapter has no weights", field=WEIGHTS_FILE)
    return _stacked({name: _module(name, pair, rank, scaling) for name, pair in pairs.items()})


def check_base_model(files: Mapping[str, bytes], base_model: str) -> None:
    """Raises InvalidRequest if the configuration names another base model than this one.

    PEFT writes down where a model was loaded from: a folder's path says nothing of what lies there.
    """
    trained_on = str(configuration_among(files).get("base_model_name_or_path") or "")
    if not trained_on or trained_on.startswith(("/", ".", "~")) or _last(trained_on) == _last(base_model):
        return
    raise InvalidRequest(
        f"the adapter was trained on {trained_on[:200]!r}, as its {CONFIG_FILE} says, and not on "
        f"{base_model[:200]!r}",
        field="base_model",
    )


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def _matrix(name: str, tensor: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Raises Unsupported for another dtype than those of _DTYPES, or other than two dimensions."""
    dtype, shape, data = tensor["dtype"], tensor["shape"], tensor["data"]
    if dtype not in _DTYPES or len(shape) != 2:
        raise Unsupported(
            f"{name[:200]} has dtype {dtype} and {len(shape)} dimensions; served are matrices of "
            f"{', '.join(_DTYPES)}",
            field=WEIGHTS_FILE,
        )
    numbers = np.frombuffer(data, dtype=_DTYPES[dtype])
    if dtype == "BF16":  # the upper half of a float32
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.reshape(shape).astype(np.float64)


def _rank_and_scaling(config: Mapping[str, Any]) -> tuple[int, float]:
    check_settings(config, field=CONFIG_FILE, read={"use_rslora"})
    rank, alpha = rank_and_alpha(config, field=CONFIG_FILE, max_rank=MAX_RANK)
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _module(name: str, pair: Mapping[str, npt.NDArray[np.float64]], rank: int, scaling: float) -> LoraModule:
    """The scaling is that of `rank`: matrices of another one would be served with another delta."""
    if set(pair) != {"A", "B"}:
        raise InvalidRequest(f"{name} lacks lora_A or lora_B", field=WEIGHTS_FILE)
    a, b = pair["A"], pair["B"]
    if a.shape[0] != b.shape[1] or not 1 <= a.shape[0] <= MAX_RANK or not (a.size and b.size):
        raise InvalidRequest(f"lora_A and lora_B of {name} do not fit together", field=WEIGHTS_FILE)
    if a.shape[0] != rank:
        raise InvalidRequest(
            f"lora_A and lora_B of {name} have rank {a.shape[0]}, and {CONFIG_FILE} says r={rank}: publish "
            "both files as one training has saved them",
            field=WEIGHTS_FILE,
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InvalidRequest(f"{name} has weights that are not finite", field=WEIGHTS_FILE)
    return LoraModule(name, a, b, scaling)


def _stacked(modules: Mapping[str, LoraModule]) -> list[LoraSite]:
    sites: dict[tuple[int, str], list[LoraModule]] = defaultdict(list)
    order = list(_SITES)
    for name in sorted(modules, key=lambda one: (_layer(one), order.index(_leaf(one)))):
        sites[(_layer(name), _SITES[_leaf(name)])].append(modules[name])
    return [LoraSite(f"model.layers.{layer}.{site}", tuple(some)) for (layer, site), some in sites.items()]


def _layer(name: str) -> int:
    return int(name.split(".")[2])


def _leaf(name: str) -> str:
    return name.split(".", 3)[3]
