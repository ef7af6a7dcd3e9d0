"""With the noise off, one unit moves the released sum by at most the clip norm, whatever it holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tensafe.operations.records import OpKind, OpState
from tensafe.privacy import release
from tensafe_gpu.trainer import private_steps
from tensafe_gpu.trainer.layout import Layout, Site
from tests.support.privacy_audit import planted
from tests.support.privacy_audit.neighbours import sensitivity, sum_by_trainer
from tests.support.training_log import VOCAB, optim_step, private
from tests.unit.trainer_worker.rig import RUN, Rig

LAYOUTS = {
    "two sites": Layout((Site("a", 5, 3), Site("b", 2, 7)), 2),
    # A has one block of the norm's 4,096 entries and one entry more.
    "a block and one": Layout((Site("a", 4097, 3),), 1),
}
SCALES = (0.0, 1e-40, 1e-20, 1e-3, 1.0, 1e6, 1e15, 1e20, 1e32, 3e38, float("inf"), float("nan"))
CLIP_NORMS = (1e-12, 1e-6, 1e-2, 1.0, 1e6)


def gradients_of(layout: Layout, scales: Sequence[float], seed: int, *, lone: bool) -> torch.Tensor:
    """One example per scale, float32 [N, P]: dense ones, or each with a single entry, the last of the first A."""
    rng = np.random.default_rng(seed)
    dense = rng.uniform(-1, 1, (len(scales), layout.numel))
    if lone:
        dense[:] = 0.0
        dense[:, layout.sizes[0] - 1] = 1.0
    with np.errstate(invalid="ignore"):
        return torch.from_numpy((dense * np.array(scales)[:, None]).astype(np.float32))


@settings(max_examples=150)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    scales=st.lists(st.sampled_from(SCALES), min_size=1, max_size=7),
    units=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    clip_norm=st.sampled_from(CLIP_NORMS),
    call_units=st.integers(1, 4),
    lone=st.booleans(),
    seed=st.integers(0, 9),
)
@example("a block and one", [1.5e32], [0] * 7, 1e-12, 1, True, 0)
@example("a block and one", [2e33, 1.0], [0, 1] * 3 + [0], 3e-12, 1, True, 0)
def test_of_the_summing_function(
    layout: str,
    scales: list[float],
    units: list[int],
    clip_norm: float,
    call_units: int,
    lone: bool,
    seed: int,
) -> None:
    shape = LAYOUTS[layout]
    present = sorted(set(units[: len(scales)]))
    unit_of = [present.index(unit) for unit in units[: len(scales)]]
    gradients = gradients_of(shape, scales, seed, lone=lone)
    sum_of = sum_by_trainer(gradients, unit_of, clip_norm, shape, call_units=call_units)
    for leaver in range(len(present)):
        assert sensitivity(sum_of, len(present), leaver) <= clip_norm
