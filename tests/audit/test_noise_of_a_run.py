"""The noise that trainers really add: its size, its shape, and no relation between any two steps.

`tests/unit/privacy/test_noise.py` has the generator alone, over a million samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tensafe.operations.records import OpState
from tensafe.privacy import noise, release
from tests.support.dealt_training import dealt, register, send
from tests.support.privacy_audit.watching import Released, watch_releases
from tests.support.training_log import Step, forward_backward, load, optim_step, private, save
from tests.unit.trainer_worker.rig import RUN, Rig

FORK, OTHER, DEALT = "s-1:train:1", "s-1:train:2", "s-1:train:3"
P_LIMIT = 1e-3


def many_steps(new_rig: Callable[..., Rig], patch: pytest.MonkeyPatch) -> list[Released]:
    """Steps with data and without, restarts, a checkpoint that is loaded again, a fork, a dealt run."""
    released = watch_releases(patch)
    optimizer = private(clip_norm=0.25, noise_multiplier=3.0, max_participations=20)
    rig = new_rig()

    def do(run_id: str, seq: int, step: Step) -> None:
        assert rig.do(seq, step, run_id).state is OpState.COMPLETED, (run_id, seq)

    rig.begin(RUN, optimizer=optimizer)
    for seq, step in enumerate(
        [forward_backward(1, units=[1, 2]), optim_step(), save("kept"), optim_step(), optim_step()], 1
    ):
        do(RUN, seq, step)
    rig.restart()
    do(RUN, 6, optim_step())
    do(RUN, 7, load(RUN, "kept", optimizer=optimizer))
    do(RUN, 8, forward_backward(1, units=[1, 2]))
    do(RUN, 9, optim_step())
    rig.restart()
    do(RUN, 10, optim_step())
    rig.begin(FORK, load(RUN, "kept", optimizer=optimizer), optimizer=optimizer)
    rig.begin(OTHER, optimizer=private(clip_norm=4.0, domain="elsewhere"))
    for run_id, seq in itertools.product((FORK, OTHER), range(1, 5)):
        do(run_id, seq, optim_step())
    register(rig.services.domains)
    rig.begin(DEALT, optimizer=dealt())
    rig.drain()
    stream, seq = rig.world.stream(DEALT), 1
    for step in range(3):
        if unit_ids := rig.services.deals.issue(stream, step).unit_ids:
            do(DEALT, seq, send(unit_ids))
            seq += 1
        do(DEALT, seq, optim_step())
        rig.restart()
        seq += 1
    assert rig.services.deals.shown(stream).completed == 3
    return released


def one_per_step(released: Sequence[Released]) -> dict[tuple[str, int], Released]:
    """By run and step; a step that was replayed has released the same bits again."""
    steps: dict[tuple[str, int], Released] = {}
    for one in released:
        first = steps.setdefault((one.charge.run.run_id, one.charge.step), one)
        assert one.noisy_sum.tobytes() == first.noisy_sum.tobytes(), "a step was released twice, differently"
    return steps


def p_values(noises: np.ndarray) -> dict[str, float]:
    """How likely such noise is if all of it is independent and standard Gaussian; float64 [steps, P]."""
    steps, size = noises.shape
    squares = float((noises**2).sum())
    correlations = np.corrcoef(noises)[np.triu_indices(steps, 1)]
    largest = float(np.abs(correlations).max()) * math.sqrt(size)
    return {
        "deviation": 2
        * float(min(stats.chi2.cdf(squares, noises.size), stats.chi2.sf(squares, noises.size))),
        "shape": float(stats.kstest(noises.ravel(), "norm").pvalue),
        "correlation": min(1.0, len(correlations) * 2 * float(stats.norm.sf(largest))),
    }


def test_steps_restarts_restores_forks_and_runs_draw_independent_noise(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = many_steps(new_rig, monkeypatch)
    steps = one_per_step(released)
    assert len(steps) == 17
    assert len(released) > 17, "the restarts have replayed some"
    found = p_values(np.stack([one.noise for one in steps.values()]))
    assert min(found.values()) > P_LIMIT, found


def _wrong_size(key: bytes, step: int, *args: Any, **options: Any) -> np.ndarray:
    return 0.97 * noise.gaussian(key, step, *args, **options)


def _by_a_counter_that_a_checkpoint_resets(key: bytes, step: int, *args: Any, **options: Any) -> np.ndarray:
    return noise.gaussian(key, step % 7, *args, **options)


def _by_the_step_alone(key: bytes, step: int, *args: Any, **options: Any) -> np.ndarray:
    return noise.gaussian(bytes(32), step, *args, **options)


def _uniform(key: bytes, step: int, count: int, deviation: float, **options: Any) -> np.ndarray:
    normals = noise.gaussian(key, step, count, 1.0, **options)
    return deviation * math.sqrt(12) * (stats.norm.cdf(normals) - 0.5)


@pytest.mark.parametrize(
    ("bug", "caught_by"),
    [
        (_wrong_size, "deviation"),
        (_by_a_counter_that_a_checkpoint_resets, "correlation"),
        (_by_the_step_alone, "correlation"),
        (_uniform, "shape"),
    ],
)
def test_planted_noise_bugs_are_seen(
    bug: Any, caught_by: str, new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "gaussian", bug)
    steps = one_per_step(many_steps(new_rig, monkeypatch))
    found = p_values(np.stack([one.noise for one in steps.values()]))
    assert found[caught_by] < P_LIMIT, found
