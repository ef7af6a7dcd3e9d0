"""A run stays hot for longer than a queue keeps a message: a new one in time, and the lease goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.operations.doorbell import queue_specs
from tensafe.operations.records import OpState
from tensafe.storage.ports import VISIBILITY_MAX_S
from tensafe.storage.sqs_queues import SqsQueues
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.hot_runs import RENEW_AFTER_S
from tests.contract.emulators import create_queues, moto_in_process
from tests.support.training_log import forward_backward, optim_step
from tests.unit.operations.world import BASE, TRAIN
from tests.unit.trainer_worker.rig import RUN, Rig

BEAT_S = 1800.0
"""Beats of half an hour, and messages hidden for an hour: 13 hours are soon over."""


@pytest.fixture(params=["memory", "sqlite", "sqs"])
def held(request: pytest.FixtureRequest, base: BaseModel, tmp_path: Path) -> Iterator[Rig]:
    """A worker with a hot run. On moto the adapter's clock is the test's, and visibility real time."""
    if request.param != "sqs":
        yield begun(Rig(base, tmp_path if request.param == "sqlite" else None))
        return
    with moto_in_process():
        client, urls = create_queues(specs := queue_specs([BASE]))
        rig = Rig(base)
        rig.world.queues = SqsQueues(client, specs, urls, clock=rig.world.clock_s)
        rig.world.services = rig.world.open()
        rig.services, rig.worker = rig.new_worker()
        yield begun(rig)


def begun(rig: Rig) -> Rig:
    rig.begin()
    rig.drain()
    rig.worker._hot._visibility_s = 2 * BEAT_S
    rig.worker._hot.beat()
    return rig


def pass_time(rig: Rig, hours: float) -> None:
    for _ in range(int(hours * 3600 / BEAT_S)):
        rig.world.later(BEAT_S)
        rig.worker._hot.beat()
        rig.worker.step()
        rig.worker._hot.beat()


def test_a_run_is_held_for_thirteen_hours_and_on(held: Rig) -> None:
    (run,) = held.worker._hot.all()
    token, first = run.lease.token, run.message.receipt
    held.submit(1, forward_backward())
    pass_time(held, RENEW_AFTER_S / 3600 - 1)
    assert run.message.receipt == first
    pass_time(held, 2)
    assert run.message.receipt != first
    assert run.message.receives == 1
    pass_time(held, 24)
    assert held.worker._hot.all() == [run]
    assert (run.lost, run.lease.token) == (False, token)
    assert held.services.leases.held(RUN, margin_s=0)
    assert held.do(2, optim_step()).state is OpState.COMPLETED
    assert held.op(2).tries == 1
    assert held.world.queues.depth(TRAIN) == 1
    held.worker.release_all()
    assert held.world.drain(TRAIN) == []


def test_it_is_in_time_for_the_platform() -> None:
    assert VISIBILITY_MAX_S - RENEW_AFTER_S == 3600


def test_meanwhile_the_lease_alone_is_extended(held: Rig) -> None:
    (run,) = held.worker._hot.all()
    run.received_s = held.world.clock_s() - RENEW_AFTER_S
    held.worker._hot.beat()
    assert run.received_s is None
    for _ in range(3):
        held.world.later(20)
        held.worker._hot.beat()
    assert not run.lost
    assert held.services.leases.held(RUN, margin_s=15)
    assert held.world.queues.depth(TRAIN) == 1
    assert held.world.open().leases.claim(RUN, "trainer-z") is None
    held.worker.step()
    assert run.received_s is not None


def test_a_run_that_is_let_go_meanwhile_leaves_nothing_undone(held: Rig) -> None:
    (run,) = held.worker._hot.all()
    run.received_s = held.world.clock_s() - RENEW_AFTER_S
    held.worker._hot.beat()
    held.worker.release_all()
    held.worker.step()  # the new message: there is nothing to do for it
    assert (len(held.worker._hot), held.world.queues.depth(TRAIN)) == (0, 0)
    held.submit(1, forward_backward())
    held.drain()
    assert held.op(1).state is OpState.COMPLETED


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("died_at", ["send", "delete"])
def test_a_death_in_between_loses_nothing(base: BaseModel, tmp_path: Path, died_at: str) -> None:
    rig = begun(Rig(base, tmp_path))
    (run,) = rig.worker._hot.all()
    rig.submit(1, forward_backward())
    run.received_s = rig.world.clock_s() - RENEW_AFTER_S
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.world.queues, died_at, _killed)
        with pytest.raises(Killed):
            rig.worker._hot.beat()
    assert rig.world.queues.depth(TRAIN) == {"send": 1, "delete": 2}[died_at]
    rig.world.later(2 * BEAT_S)
    rig.restart()
    rig.drain()
    assert rig.op(1).state is OpState.COMPLETED
    rig.worker.release_all()
    for _ in range(3):  # what is left rings for nothing
        rig.worker.step()
    assert rig.world.queues.depth(TRAIN) == 0


def _killed(*_: Any, **__: Any) -> None:
    raise Killed


def test_a_queue_that_is_away_is_asked_again(held: Rig) -> None:
    (run,) = held.worker._hot.all()
    run.received_s = held.world.clock_s() - RENEW_AFTER_S
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held.world.queues, "send", _away)
        held.worker._hot.beat()
    assert (run.lost, run.received_s is None) == (False, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held.world.queues, "delete", _away)
        held.worker._hot.beat()
    assert (run.lost, run.received_s is None) == (False, True)
    assert held.world.queues.depth(TRAIN) == 2


def _away(*_: Any, **__: Any) -> None:
    raise Unavailable("away")
