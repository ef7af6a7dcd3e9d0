"""A trained adapter in the layout of PEFT, as the sites of the protocol. numpy alone: no torch here."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import safetensors
from safetensors.numpy import load as load_tensors

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe_gpu.helora.adapter import LoraModule, LoraSite
from tensafe_gpu.helora.parameters import MAX_RANK
from tensafe_gpu.peft_settings import MUST_BE_OFF

WEIGHTS_FILE: Final = "adapter_model.safetensors"
CONFIG_FILE: Final = "adapter_config.json"
_TENSOR: Final = re.compile(r"base_model\.model\.(model\.layers\.\d+\.[a-z_.]+)\.lora_([AB])\.weight")
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
    scaling = _scaling(files)
    try:
        tensors = load_tensors(files[WEIGHTS_FILE])
    except KeyError as error:
        raise InvalidRequest(
            f"{WEIGHTS_FILE} is missing or has another dtype than float32 or float16", field=WEIGHTS_FILE
        ) from error
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise InvalidRequest(f"{WEIGHTS_FILE} is unreadable", field=WEIGHTS_FILE) from error
    pairs: dict[str, dict[str, np.ndarray[Any, Any]]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or _leaf(match[1]) not in _SITES:
            raise Unsupported(
                f"{name[:200]} cannot be served privately: attention and MLP projections alone can; train "
                "with train_unembed=False",
                field=WEIGHTS_FILE,
            )
        if tensor.dtype not in (np.float32, np.float16) or tensor.ndim != 2:
            raise Unsupported(f"{name[:200]} has dtype {tensor.dtype}; float32 or float16 is served")
        pairs[match[1]][match[2]] = tensor
    if not pairs:
        raise InvalidRequest("the adapter has no weights", field=WEIGHTS_FILE)
    return _stacked({name: _module(name, pair, scaling) for name, pair in pairs.items()})


def _scaling(files: Mapping[str, bytes]) -> float:
    try:
        config = json.loads(files[CONFIG_FILE])
        rank, alpha, kind = config["r"], config["lora_alpha"], config["peft_type"]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{CONFIG_FILE} is missing or not a LoRA configuration", field=CONFIG_FILE
        ) from error
    for name in MUST_BE_OFF:
        if config.get(name):
            raise Unsupported(f"the PEFT setting {name} is not supported; it must be off", field=CONFIG_FILE)
    if kind != "LORA" or config.get("bias", "none") != "none":
        raise Unsupported("only plain LoRA without trained biases is served privately", field=CONFIG_FILE)
    if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise InvalidRequest(f"r must be 1 to {MAX_RANK}", field=CONFIG_FILE)
    if not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
        raise InvalidRequest("lora_alpha must be a positive number", field=CONFIG_FILE)
    return float(alpha) / rank


def _module(name: str, pair: Mapping[str, np.ndarray[Any, Any]], scaling: float) -> LoraModule:
    if set(pair) != {"A", "B"}:
        raise InvalidRequest(f"{name} lacks lora_A or lora_B", field=WEIGHTS_FILE)
    a, b = pair["A"].astype(np.float64), pair["B"].astype(np.float64)
    if a.shape[0] != b.shape[1] or not 1 <= a.shape[0] <= MAX_RANK:
        raise InvalidRequest(f"lora_A and lora_B of {name} do not fit together", field=WEIGHTS_FILE)
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
