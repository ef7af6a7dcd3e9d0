"""Data for the official SDK, from token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tinker import types


def supervised(tokens: Sequence[int], *, unit: int | None = None) -> types.Datum:
    """Next-token cross-entropy over all of `tokens`."""
    inputs: dict[str, torch.Tensor] = {
        "target_tokens": torch.tensor(list(tokens[1:])),
        "weights": torch.ones(len(tokens) - 1),
    }
    if unit is not None:
        inputs["dp_unit_id"] = torch.tensor([unit])
    return types.Datum(model_input=types.ModelInput.from_ints(list(tokens[:-1])), loss_fn_inputs=inputs)


def rollout(tokens: Sequence[int], logprobs: Sequence[float], advantages: Sequence[float]) -> types.Datum:
    """Input of a policy-gradient loss."""
    inputs = {
        "target_tokens": torch.tensor(list(tokens[1:])),
        "logprobs": torch.tensor(list(logprobs), dtype=torch.float32),
        "advantages": torch.tensor(list(advantages), dtype=torch.float32),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(list(tokens[:-1])), loss_fn_inputs=inputs)
