"""Private runs with `freeze_lora_a`: what noise is drawn for, and what such a run may begin from."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tensafe.operations.records import OpKind, OpState
from tensafe.privacy import release
from tensafe_gpu.trainer import private_steps
from tensafe_gpu.trainer.method import Method
from tensafe_gpu.trainer.state import RunState
from tests.support.training_log import (
    forward_backward,
    load,
    optim_step,
    private,
    private_sgd,
    save,
    sgd_step,
)
from tests.unit.trainer_worker.rig import RUN, Rig

OTHER = "s-1:train:5"
FROZEN = private(freeze_lora_a=True)


@pytest.fixture(autouse=True)
def _secrets_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in service: the ledger refuses two runs with one secret."""
    monkeypatch.setattr(private_steps, "os", os)


def state_of(rig: Rig, run_id: str = RUN) -> RunState:
    run = next(run for run in rig.worker._hot.all() if run.stream.stream_id == run_id)
    assert run.state is not None
    return run.state


def matrices(rig: Rig, which: int, run_id: str = RUN) -> list[torch.Tensor]:
    state = state_of(rig, run_id)
    return [pair[which].clone() for pair in state.layout.pairs(state.params)]


def message(rig: Rig, seq: int, run_id: str = RUN) -> str:
    failure = rig.op(seq, run_id).failure
    assert failure is not None
    assert failure.category == "user"
    return failure.message


@pytest.mark.parametrize("sgd", [False, True])
def test_noise_is_drawn_for_b_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch, sgd: bool) -> None:
    drawn: list[int] = []
    gaussian = release.gaussian

    def counted(secret: bytes, step: int, count: int, deviation: float, **given: Any) -> Any:
        drawn.append(count)
        return gaussian(secret, step, count, deviation, **given)

    monkeypatch.setattr(release, "gaussian", counted)
    rig.begin(optimizer=private_sgd(freeze_lora_a=True) if sgd else FROZEN)
    rig.do(1, forward_backward(1, units=[1, 2]))
    before = matrices(rig, 0), matrices(rig, 1)
    done = rig.do(2, sgd_step(weight_decay=0.1) if sgd else optim_step(weight_decay=0.1))
    assert done.state is OpState.COMPLETED
    assert drawn == [sum(b.numel() for b in before[1])]
    assert all(torch.equal(*both) for both in zip(matrices(rig, 0), before[0], strict=True))
    assert not any(torch.equal(*both) for both in zip(matrices(rig, 1), before[1], strict=True))


def test_a_state_goes_on_in_a_run_that_freezes_a_too(rig: Rig) -> None:
    rig.begin(optimizer=FROZEN)
    rig.do(1, forward_backward(1, units=[1, 2]))
    rig.do(2, optim_step())
    rig.do(3, save("kept"))
    kept = state_of(rig).dump()
    rig.begin(OTHER, load(RUN, "kept", optimizer=FROZEN), optimizer=FROZEN)
    rig.drain()
    assert rig.op(0, OTHER).state is OpState.COMPLETED
    assert state_of(rig, OTHER).dump() == kept
    assert rig.do(1, optim_step(), OTHER).state is OpState.COMPLETED


@pytest.mark.parametrize("saved_frozen", [True, False])
def test_a_state_of_the_other_kind_is_refused_and_its_weights_are_not(rig: Rig, saved_frozen: bool) -> None:
    saved, loading = (FROZEN, private()) if saved_frozen else (private(), FROZEN)
    rig.begin(optimizer=saved)
    rig.do(1, forward_backward(1, units=[1, 2]))
    rig.do(2, optim_step())
    rig.do(3, save("kept"))
    rig.begin(OTHER, optimizer=loading)
    rig.do(1, load(RUN, "kept", optimizer=loading), OTHER)
    assert "freeze_lora_a" in message(rig, 1, OTHER)
    done = rig.do(2, load(RUN, "kept", with_optimizer=False, optimizer=loading), OTHER)
    assert done.state is OpState.COMPLETED
    assert state_of(rig, OTHER).method == Method.of(loading)
    rig.do(3, forward_backward(2, units=[3, 4]), OTHER)
    assert rig.do(4, optim_step(), OTHER).state is OpState.COMPLETED
    kept = zip(matrices(rig, 0, OTHER), matrices(rig, 0), strict=True)
    assert all(torch.equal(*both) for both in kept) is not saved_frozen


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
def test_an_a_of_zeros_is_refused_since_its_b_could_not_learn(rig: Rig, kind: str) -> None:
    rig.begin(optimizer=private())
    rig.drain()
    with torch.no_grad():
        state = state_of(rig)
        state.layout.pairs(state.params)[3][0].zero_()
    rig.do(1, save("x", OpKind.SAVE if kind == "weights" else OpKind.SAVE_SAMPLER))
    rig.begin(OTHER, load(RUN, "x", kind=kind, with_optimizer=False, optimizer=FROZEN), optimizer=FROZEN)
    rig.drain()
    assert "o_proj" in message(rig, 0, OTHER)
    third = "s-1:train:6"
    plain = private()
    rig.begin(third, load(RUN, "x", kind=kind, with_optimizer=False, optimizer=plain), optimizer=plain)
    rig.drain()
    assert rig.op(0, third).state is OpState.COMPLETED
