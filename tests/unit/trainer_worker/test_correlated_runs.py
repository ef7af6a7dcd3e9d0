"""Runs with correlated noise in the trainer: which noise a step draws after a load, a fork, a restart."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tensafe.contracts.training import DpAdamWConfig
from tensafe.operations.records import OpState
from tensafe.privacy import release
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.noise import correlated_gaussian
from tensafe_gpu.trainer import private_steps
from tests.support.training_log import Step, forward_backward, load, optim_step, private, save
from tests.unit.trainer_worker.rig import RUN, Rig

FORK = "s-1:train:7"


def correlated(**changes: object) -> DpAdamWConfig:
    given = {
        "noise": "bisr",
        "bisr_bandwidth": 3,
        "max_steps": 6,
        "max_participations": 2,
        "min_separation": 2,
    }
    return private(**{**given, **changes})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int]]:
    """Secret and index of every noise vector that has been asked for."""
    calls: list[tuple[bytes, int]] = []

    def watched(key: bytes, index: int, *rest: object, **options: object) -> np.ndarray:
        calls.append((key, index))
        return correlated_gaussian(key, index, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(release, "correlated_gaussian", watched)
    return calls


def do_all(rig: Rig, steps: list[Step], first: int = 1, run_id: str = RUN) -> None:
    for seq, step in enumerate(steps, first):
        assert rig.do(seq, step, run_id).state is OpState.COMPLETED, rig.op(seq, run_id).failure


def test_loading_a_checkpoint_does_not_rewind_the_noise(rig: Rig, drawn: list[tuple[bytes, int]]) -> None:
    """Nor the counters: the same noise on another sum would be a second release that nobody charged."""
    rig.begin(optimizer=correlated())
    first = [forward_backward(1, units=[1]), optim_step(), save("kept")]
    do_all(rig, [*first, forward_backward(2, units=[2]), optim_step()])
    do_all(rig, [load(RUN, "kept", optimizer=correlated()), forward_backward(3, units=[1]), optim_step()], 6)
    assert [index for _, index in drawn] == [0, 1, 2]
    rig.do(9, forward_backward(4, units=[1]))
    failure = rig.op(9).failure
    assert failure is not None
    assert "max_participations=2" in failure.message


def test_a_fork_is_a_fresh_mechanism_with_a_fresh_secret(
    rig: Rig, drawn: list[tuple[bytes, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is charged as one, whole."""
    monkeypatch.setattr(private_steps, "os", os)
    rig.begin(optimizer=correlated())
    do_all(rig, [forward_backward(1, units=[1]), optim_step(), save("kept")])
    alone = rig.result(2)["metrics"]["dp/epsilon"]
    rig.begin(FORK, load(RUN, "kept", optimizer=correlated()), optimizer=correlated())
    do_all(rig, [forward_backward(1, units=[1]), optim_step()], run_id=FORK)
    (one, at_one), (two, at_two) = drawn
    assert (at_one, at_two) == (0, 0)
    assert one != two
    metrics = rig.result(2, FORK)["metrics"]
    assert metrics["dp/run_epsilon"] == alone
    assert metrics["dp/epsilon"] > 1.3 * alone


def test_a_replay_draws_the_noise_of_the_first_time(rig: Rig, drawn: list[tuple[bytes, int]]) -> None:
    rig.begin(optimizer=correlated())
    do_all(rig, [forward_backward(1, units=[1]), optim_step(), optim_step(), forward_backward(2, units=[1])])
    rig.restart()
    do_all(rig, [optim_step()], 5)
    assert [index for _, index in drawn] == [0, 1, 0, 1, 2]
    ports = rig.services.ports
    ledger = Ledger(ports.items, rig.services.vault, ports.signer, ports.anchors)
    assert ledger.show("acme", "letters").steps == 3


def test_an_early_unit_is_refused_by_position_and_adds_nothing(rig: Rig) -> None:
    rig.begin(optimizer=correlated())
    do_all(rig, [forward_backward(1, units=[1]), optim_step()])
    before = rig.result(2)
    rig.do(3, forward_backward(2, units=[5, 1]))
    failure = rig.op(3).failure
    assert failure is not None
    assert failure.category == "user"
    assert "position 1, may return after 1 more step(s)" in failure.message
    assert rig.result(2) == before
    do_all(rig, [optim_step(), forward_backward(2, units=[5, 1]), optim_step()], 4)
    assert rig.result(4)["metrics"]["dp/participations"] == 1
    assert rig.result(6)["metrics"]["dp/participations"] == 2
