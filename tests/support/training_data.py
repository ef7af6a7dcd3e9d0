"""Random training data and runs with non-trivial adapters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tensafe.contracts.training import Datum, ForwardBackward, LoraSpec
from tensafe_gpu.trainer.method import ADAMW, Method

SAMPLED_LOSSES = ("importance_sampling", "ppo", "cispo", "dro")


def random_datum(
    rng: np.random.Generator,
    length: int,
    *,
    vocab: int = 512,
    targets: int | None = None,
    loss_fn: str = "cross_entropy",
    unit_id: int | None = None,
) -> Datum:
    """A datum with random tokens and inputs for the loss; `targets` is K of [T, K]."""
    shape = (length,) if targets is None else (length, targets)
    tokens = rng.integers(0, vocab, length).astype(np.int32)
    inputs = {"target_tokens": rng.integers(0, vocab, shape).astype(np.int64)}
    if loss_fn == "cross_entropy":
        inputs["weights"] = rng.normal(size=shape).astype(np.float32)
    else:
        inputs["logprobs"] = (-6.5 + rng.normal(size=shape)).astype(np.float32)
        inputs["advantages"] = (rng.normal(size=shape) * rng.integers(0, 2, shape)).astype(np.float32)
    return Datum(tokens, inputs, unit_id)


def random_request(
    lengths: Sequence[int] = (7, 3, 12, 1, 9),
    *,
    loss_fn: str = "cross_entropy",
    config: dict[str, float] | None = None,
    targets: int | None = None,
    units: Sequence[int] | None = None,
    forward_only: bool = False,
    seed: int = 0,
) -> ForwardBackward:
    """A request with one datum per length."""
    rng = np.random.default_rng(seed)
    data = tuple(
        random_datum(rng, n, targets=targets, loss_fn=loss_fn, unit_id=None if units is None else units[i])
        for i, n in enumerate(lengths)
    )
    return ForwardBackward(data, loss_fn, config or {}, forward_only)


def warm_run(engine, *, rank: int = 4, seed: int = 3, spread: float = 0.05, method: Method = ADAMW, **spec):
    """A run whose B matrices are not zero, so that A has a gradient."""
    state = engine.create(LoraSpec(rank=rank, seed=seed, **spec), method)
    noise = torch.randn(state.params.shape, generator=torch.Generator().manual_seed(seed)) * spread
    state.params.add_(noise.to(state.params.device))
    state.refresh()
    return state
