"""The adapter of zeros that stands for a private one inside vLLM, so that its rows have a name."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save

from tensafe_gpu.sampler.adapters import CONFIG_FILE, WEIGHTS_FILE, BaseShapes


def zero_files(base: BaseShapes) -> dict[str, bytes]:
    """PEFT's two files of rank 1 on one module, all zero: vLLM applies nothing."""
    module, (width_in, width_out) = next(
        (name, shape) for name, shape in base.linear.items() if name.endswith("_proj")
    )
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": [module.rpartition(".")[2]],
        "bias": "none",
    }
    tensors = {
        f"base_model.model.{module}.lora_A.weight": torch.zeros(1, width_in),
        f"base_model.model.{module}.lora_B.weight": torch.zeros(width_out, 1),
    }
    return {CONFIG_FILE: json.dumps(config).encode(), WEIGHTS_FILE: save(tensors)}
