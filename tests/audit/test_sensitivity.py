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
from tensafe_gpu.trainer import engine
from tensafe_gpu.trainer.layout import Layout, Site
from tests.support.privacy_audit import planted
from tests.support.privacy_audit.neighbours import sensitivity, sum_by_trainer
from tests.support.privacy_audit.watching import Released, watch_releases
from tests.support.training_log import VOCAB, optim_step, private
from tests.unit.trainer_worker.rig import Rig

LAYOUTS = {
    "two sites": Layout((Site("a", 5, 3), Site("b", 2, 7)), 2),
    # A has one block of the norm's 4,096 entries and one entry more.
    "a block and one": Layout((Site("a", 4097, 3),), 1),
}
SCALES = (0.0, 1e-40, 1e-20, 1e-3, 1.0, 1e6, 1e15, 1e20, 1e32, 3e38, float("inf"), float("nan"))
CLIP_NORMS = (1e-12, 1e-6, 1e-2, 1.0, 1e6)


def gradients_of(layout: Layout, scales: Sequence[float], seed: int, *, lone: bool) -> torch.Tensor:
    """One example per scale, float32 [N, P]: dense, or with one entry each, the last of the first A."""
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


def call_of(rows: Sequence[dict[str, Any]]) -> tuple[OpKind, bytes]:
    body = {"data": list(rows), "loss_fn": "cross_entropy", "forward_only": False}
    return OpKind.FORWARD_BACKWARD, json.dumps(body).encode()


def row_of(rng: np.random.Generator, unit: int, weight: float) -> dict[str, Any]:
    length = int(rng.integers(1, 9))
    inputs = {
        "target_tokens": rng.integers(0, VOCAB, length).tolist(),
        "weights": (weight * rng.uniform(0.5, 1.5, length)).tolist(),
    }
    return {"tokens": rng.integers(0, VOCAB, length).tolist(), "loss_fn_inputs": inputs, "dp_unit_id": unit}


def released_sum(
    rig: Rig, released: list[Released], calls: Sequence[Sequence[dict[str, Any]]], clip_norm: float
) -> np.ndarray:
    """What a new run of the trainer releases for these calls: the first step moves B away from zero."""
    run = f"s-1:train:{len(released)}"
    # At this noise multiplier the grid, which depends on the noise, is as fine as it ever is.
    rig.begin(run, optimizer=private(clip_norm=clip_norm, max_participations=9, domain=f"d{len(released)}"))
    warm = [row_of(np.random.default_rng(0), 99, 1.0)]
    steps = [call_of(warm), optim_step(0.3), *(call_of(rows) for rows in calls if rows), optim_step()]
    for seq, step in enumerate(steps, 1):
        assert rig.do(seq, step, run).state is OpState.COMPLETED
    return released[-1].noisy_sum


def worker_sensitivity(
    rig: Rig,
    patch: pytest.MonkeyPatch,
    calls: Sequence[Sequence[dict[str, Any]]],
    leaver: int,
    clip_norm: float,
) -> float:
    released = watch_releases(patch)
    patch.setattr(release, "gaussian", lambda *_, **__: 0.0)
    without = [[row for row in rows if row["dp_unit_id"] != leaver] for rows in calls]
    full = released_sum(rig, released, calls, clip_norm)
    return float(np.linalg.norm(full - released_sum(rig, released, without, clip_norm)))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999),
    # Calls of a step; in each, the units of its examples. No unit returns in another call.
    calls=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=3),
    outlier=st.sampled_from([0.0, 1.0, 1e9, -1e9, 1e30]),
    clip_norm=st.sampled_from([1e-3, 1.0, 100.0]),
    microbatch_tokens=st.sampled_from([8, 1024]),
)
def test_of_what_the_trainer_releases(
    new_rig: Callable[..., Rig],
    seed: int,
    calls: list[list[int]],
    outlier: float,
    clip_norm: float,
    microbatch_tokens: int,
) -> None:
    """forward_backward and optim_step of a worker over a LoRA model: charge, sum, grid, public divisor."""
    rng = np.random.default_rng(seed)
    leaver = calls[0][0]
    rows = [
        [row_of(rng, 10 * number + unit, outlier if 10 * number + unit == leaver else 1.0) for unit in units]
        for number, units in enumerate(calls)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engine.MICROBATCH_TOKENS, "cpu", microbatch_tokens)
        assert worker_sensitivity(new_rig(), patch, rows, leaver, clip_norm) <= clip_norm


@pytest.mark.parametrize(
    ("bug", "at_least"), [(planted.clip_at(3), 2.9), (planted.clip_the_batch, 1.2)], ids=["3C", "batch"]
)
def test_planted_clipping_bugs_are_seen(
    bug: planted.Plant, at_least: float, new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the summing function and through the trainer: one huge outlier among ordinary units."""
    shape = LAYOUTS["two sites"]
    gradients = gradients_of(shape, [1e6, 50.0, 50.0, 50.0], seed=1, lone=False)
    rng = np.random.default_rng(1)
    rows = [[row_of(rng, unit, -1e9 if unit == 0 else 100.0) for unit in range(4)]]
    sum_of = sum_by_trainer(gradients, [0, 1, 2, 3], 1.0, shape, call_units=4)
    assert sensitivity(sum_of, 4, 0) <= 1.0
    with pytest.MonkeyPatch.context() as patch:
        assert worker_sensitivity(new_rig(), patch, rows, 0, 1.0) <= 1.0
    bug(monkeypatch)
    assert sensitivity(sum_of, 4, 0) >= at_least
    with pytest.MonkeyPatch.context() as patch:
        assert worker_sensitivity(new_rig(), patch, rows, 0, 1.0) >= at_least
