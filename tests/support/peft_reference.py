"""Losses and gradients from transformers + PEFT and autograd: shares nothing with the engine's numerics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM

from tensafe.contracts.training import Datum, ForwardBackward


def load_reference(path: str, files: dict[str, bytes], folder: Path, **kwargs) -> peft.PeftModel:
    """The PEFT model of exported adapter files."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, str(folder), **kwargs).eval()


def reference_logprobs(model, datum: Datum) -> torch.Tensor:
    """Logprobs of the targets, with the targets' shape, from one unpadded forward of the whole model."""
    logits = model(input_ids=torch.from_numpy(datum.tokens.astype(np.int64))[None]).logits[0].float()
    targets = torch.from_numpy(datum.inputs["target_tokens"])
    table = torch.log_softmax(logits, -1)
    return table.gather(1, targets.reshape(len(datum.tokens), -1)).reshape(targets.shape)


def reference_loss(loss_fn: str, lp: torch.Tensor, inputs: dict, config: dict[str, float]) -> torch.Tensor:
    """The loss of one datum as its definition reads, for autograd to differentiate."""
    given = {name: torch.as_tensor(value) for name, value in inputs.items()}
    if loss_fn == "cross_entropy":
        return -(lp * given["weights"]).sum()
    q, advantages = given["logprobs"], given["advantages"]
    ratio = torch.exp(lp - q)
    if loss_fn == "importance_sampling":
        return -(ratio * advantages).sum()
    if loss_fn == "dro":
        return -(lp * advantages - config.get("beta", 0.01) / 2 * (lp - q) ** 2).sum()
    default = (0.8, 1.2) if loss_fn == "ppo" else (0.0, 4.0)
    low = config.get("clip_low_threshold", default[0])
    high = config.get("clip_high_threshold", default[1])
    clipped = torch.clip(ratio, low, high)
    if loss_fn == "ppo":
        return -torch.minimum(ratio * advantages, clipped * advantages).sum()
    return -(clipped.detach() * lp * advantages).sum()


def reference_losses(model, request: ForwardBackward) -> list[torch.Tensor]:
    """The loss of each datum, in the graph."""
    return [
        reference_loss(request.loss_fn, reference_logprobs(model, d), d.inputs, dict(request.loss_config))
        for d in request.data
    ]


def flat_gradient(model, layout) -> torch.Tensor:
    """The gradients of the PEFT model's matrices in the layout's order, float32 [P]."""
    named = dict(model.named_parameters())
    return torch.cat(
        [
            named[f"base_model.model.{site.name}.lora_{letter}.default.weight"].grad.flatten()
            for site in layout.sites
            for letter in "AB"
        ]
    )
