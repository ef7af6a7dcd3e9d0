"""Adapters in the layout of Hugging Face PEFT: what `peft` and vLLM read.

`adapter_model.safetensors` holds `base_model.model.<module>.lora_A.weight` and `.lora_B.weight`;
`adapter_config.json` the shape. PEFT applies (lora_alpha / r) B A, so alpha is LORA_ALPHA.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe.contracts.training import LORA_ALPHA, MAX_RANK, LoraSpec
from tensafe_gpu.peft_settings import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_settings,
    configuration_among,
    rank_and_alpha,
)
from tensafe_gpu.trainer.layout import ATTENTION, MLP, UNEMBED, Layout
from tensafe_gpu.trainer.method import ADAMW, Method
from tensafe_gpu.trainer.state import RunState, Shapes

_PREFIX: Final = "base_model.model."


def export_peft(state: RunState, base_model_name: str) -> dict[str, bytes]:
    """The adapter's two files, float32; equal parameters give equal bytes."""
    tensors = {}
    for site, (a, b) in zip(state.layout.sites, state.layout.pairs(state.params.cpu()), strict=True):
        tensors[f"{_PREFIX}{site.name}.lora_A.weight"] = a.contiguous()
        tensors[f"{_PREFIX}{site.name}.lora_B.weight"] = b.contiguous()
    config = {
        "base_model_name_or_path": base_model_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(LORA_ALPHA),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": state.spec.rank,
        "target_modules": _leaves(state.spec),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return {
        WEIGHTS_FILE: save_tensors(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: json.dumps(config, indent=2, sort_keys=True).encode(),
    }


def import_peft(
    files: Mapping[str, bytes], base: Shapes, *, seed: int = 0, method: Method = ADAMW
) -> RunState:
    """A run with a PEFT adapter's weights and a fresh optimizer; another lora_alpha is folded into B.

    Raises InvalidRequest for files that cannot be read or do not fit the base model, Unsupported for
    variants of LoRA and for adapters that cover a group of projections only in part.
    """
    config = _read_config(files)
    try:
        tensors = load_tensors(files[WEIGHTS_FILE])
    except (KeyError, safetensors.SafetensorError) as error:
        raise InvalidRequest(f"{WEIGHTS_FILE} is missing or unreadable", field=WEIGHTS_FILE) from error
    spec = _spec(config, seed)
    layout = base.layout(spec)
    params = torch.zeros(layout.numel)
    _fill(layout, params, tensors, float(config["lora_alpha"]) / LORA_ALPHA)
    return RunState(spec, base, params.to(base.device), method)


def _leaves(spec: LoraSpec) -> list[str]:
    """Names of the projections that the spec trains, as PEFT's target_modules."""
    groups = ((spec.train_attn, ATTENTION), (spec.train_mlp, MLP), (spec.train_unembed, (UNEMBED,)))
    return [path.rpartition(".")[2] for on, paths in groups if on for path in paths]


def _read_config(files: Mapping[str, bytes]) -> dict[str, Any]:
    config = configuration_among(files)
    check_settings(config, field=CONFIG_FILE, read=())
    rank_and_alpha(config, field=CONFIG_FILE, max_rank=MAX_RANK)
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise Unsupported("target_modules must be a list of module names", field=CONFIG_FILE)
    return config


def _spec(config: Mapping[str, Any], seed: int) -> LoraSpec:
    """The groups that target_modules names, each whole."""
    targets = set(config["target_modules"])
    groups = {}
    for name, paths in (("train_attn", ATTENTION), ("train_mlp", MLP), ("train_unembed", (UNEMBED,))):
        leaves = {path.rpartition(".")[2] for path in paths}
        if targets & leaves and not leaves <= targets:
            missing = ", ".join(sorted(leaves - targets))
            raise Unsupported(f"target_modules lacks {missing}; {name} covers all of them", field=CONFIG_FILE)
        groups[name] = bool(targets & leaves)
        targets -= leaves
    if targets:
        raise Unsupported(
            f"target_modules {sorted(map(str, targets))[:4]} are not supported", field=CONFIG_FILE
        )
    return LoraSpec(rank=config["r"], seed=seed, **groups)


def _fill(layout: Layout, params: torch.Tensor, tensors: Mapping[str, torch.Tensor], scale_b: float) -> None:
    """Copy every site's matrices into `params`; each tensor of the file has to be used."""
    unused = set(tensors)
    for site, pair in zip(layout.sites, layout.pairs(params), strict=True):
        for letter, target, factor in zip("AB", pair, (1.0, scale_b), strict=True):
            name = f"{_PREFIX}{site.name}.lora_{letter}.weight"
            source = tensors.get(name)
            if source is None or source.shape != target.shape:
                found = "absent" if source is None else f"{list(source.shape)}"
                raise InvalidRequest(
                    f"{name} must be {list(target.shape)}; it is {found}", field=WEIGHTS_FILE
                )
            target.copy_(source.float() * factor)
            unused.discard(name)
    if unused:
        raise Unsupported(
            f"{WEIGHTS_FILE} has weights that do not apply: {sorted(unused)[:4]}", field=WEIGHTS_FILE
        )
