"""Poison ends after three tries and alone; who lost a run writes nothing; hot runs are kept and let go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tensafe.contracts.errors import RunBlocked, Unavailable
from tensafe.operations.leases import LeaseLost
from tensafe.operations.records import Operation, OpKind, OpState, StreamState
from tensafe.storage.ports import ConditionFailed
from tensafe_gpu.trainer import worker
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.hot_run import HotRun
from tensafe_gpu.trainer.hot_runs import HotRuns
from tensafe_gpu.trainer.restoring import Restorer
from tensafe_gpu.trainer.snapshots import Snapshots
from tensafe_gpu.trainer.worker_settings import WorkerSettings
from tests.support.training_log import forward_backward, optim_step, private, save
from tests.unit.operations.world import LEASE_S, TRAIN
from tests.unit.trainer_worker.rig import RUN, Rig

OTHER = "s-1:train:1"


class Killed(BaseException):
    """The process is gone."""


def _poisoned(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """A learning rate of 0.666 is the end of whoever takes it."""
    original = Engine.optim_step

    def step(self: Engine, state: Any, params: Any, **given: Any) -> dict[str, float]:
        if params.learning_rate == 0.666:
            raise error("the secret is xyzzy")
        return original(self, state, params, **given)

    monkeypatch.setattr(Engine, "optim_step", step)


def _serve_and_die(rig: Rig, lives: int = 10) -> int:
    """Drain with a new process for each one that dies; how many died."""
    deaths = 0
    for _ in range(lives):
        try:
            rig.drain()
        except Killed:
            deaths += 1
        rig.restart()
    return deaths


def test_an_unexpected_failure_is_tried_three_times_and_then_set_aside(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _poisoned(monkeypatch, ValueError)
    rig.begin()
    rig.submit(1, forward_backward())
    rig.submit(2, optim_step(0.666))
    rig.submit(3, forward_backward(2))
    with caplog.at_level(logging.INFO):
        for _ in range(6):
            rig.drain()
            rig.ring_again()
    failure = rig.op(2).failure
    assert failure is not None
    assert (failure.code, failure.message) == (
        "dead_letter",
        "3 tries of this optim_step operation failed: ValueError",
    )
    assert rig.op(2).tries == 3
    assert rig.op(1).state is OpState.COMPLETED
    behind = rig.op(3).failure
    assert behind is not None
    assert behind.code == "run_blocked"
    with pytest.raises(RunBlocked):
        rig.submit(4, forward_backward())
    assert "xyzzy" not in caplog.text + repr([vars(record) for record in caplog.records])


def test_an_operation_that_kills_is_set_aside_after_three_deaths_and_nothing_else_is(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QUEUE-01: the innocent run was in the hands of every process that died."""
    _poisoned(monkeypatch, Killed)
    rig.begin()
    rig.begin(OTHER)
    rig.submit(1, optim_step(0.666))
    for seq in (1, 2, 3):
        rig.submit(seq, forward_backward(seq), OTHER)
    assert _serve_and_die(rig) == 3
    assert rig.op(1).failure is not None
    assert rig.world.stream(RUN).state is StreamState.BLOCKED
    assert rig.states(OTHER) == [OpState.COMPLETED] * 4
    assert [letter.stream_id for letter in rig.services.dead_letters.list()] == [RUN]


@pytest.mark.parametrize("first", [RUN, OTHER])
def test_the_order_of_taking_runs_does_not_matter_to_the_innocent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    _poisoned(monkeypatch, Killed)
    second = OTHER if first == RUN else RUN
    for run_id in (first, second):
        rig.begin(run_id)
    rig.drain()
    rig.submit(1, forward_backward(), second)
    rig.submit(1, optim_step(0.666), first)
    rig.submit(2, forward_backward(), second)
    assert _serve_and_die(rig) == 3
    assert rig.states(second) == [OpState.COMPLETED] * 3


def test_a_restore_that_kills_is_set_aside_after_three_deaths(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.begin()
    rig.begin(OTHER)
    rig.do(1, forward_backward())
    rig.restart()
    restore = Restorer.restore

    def kill(self: Restorer, run: Any) -> None:
        if run.stream.stream_id == RUN:
            raise Killed
        restore(self, run)

    monkeypatch.setattr(Restorer, "restore", kill)
    rig.submit(2, optim_step())
    rig.submit(1, forward_backward(), OTHER)
    assert _serve_and_die(rig) == 3
    failure = rig.op(2).failure
    assert failure is not None
    assert "3 tries to restore the run" in failure.message
    assert rig.states(OTHER) == [OpState.COMPLETED] * 2


def test_deaths_spread_over_many_operations_are_bad_luck(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Engine.optim_step, list[int]()

    def every_second(self: Engine, *args: Any, **given: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) % 2:
            raise Killed
        return original(self, *args, **given)

    rig.begin()
    rig.drain()
    monkeypatch.setattr(Engine, "optim_step", every_second)
    for seq in range(1, 7):
        rig.submit(seq, save(f"n{seq}") if seq % 2 else optim_step())
    assert _serve_and_die(rig) == 3
    assert rig.states() == [OpState.COMPLETED] * 7


def test_a_redriven_operation_runs_on_the_state_that_it_was_written_for(
    rig: Rig, new_rig: Callable[..., Rig]
) -> None:
    rig.begin()
    rig.do(1, forward_backward(1))
    with pytest.MonkeyPatch.context() as patch:
        _poisoned(patch, Killed)
        rig.submit(2, optim_step(0.666))
        rig.submit(3, forward_backward(3))
        assert _serve_and_die(rig) == 3
    (letter,) = rig.services.dead_letters.list()
    rig.services.dead_letters.redrive(letter.letter_id)
    rig.drain()
    clean = new_rig()
    clean.begin()
    clean.do(1, forward_backward(1))
    clean.do(2, optim_step(0.666))
    assert rig.op(2).state is OpState.COMPLETED
    assert rig.op(3).state is OpState.FAILED
    assert rig.final() == clean.final()


def _taken_over_before(monkeypatch: pytest.MonkeyPatch, rig: Rig, what: str) -> list[str]:
    """Another trainer takes the run while this one computes; what the store holds at that moment."""
    target: Any = Engine if hasattr(Engine, what) else Restorer
    original, stored = getattr(target, what), list[str]()

    def late(*args: Any, **given: Any) -> Any:
        result = original(*args, **given)
        rig.world.later(LEASE_S)
        assert rig.world.open().leases.claim(RUN, "trainer-z") is not None
        stored[:] = _everything(rig)
        return result

    monkeypatch.setattr(target, what, late)
    return stored


def _everything(rig: Rig) -> list[str]:
    """All items of the run and of its privacy domain with their versions, and every blob."""
    items = [*rig.world.partition(f"stream/{RUN}"), *rig.world.partition("domain/acme/letters")]
    return [f"{item.key.sort} {item.version}" for item in items] + sorted(rig.world.blob_keys())


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (forward_backward(1), "forward_backward"),
        (forward_backward(1, tokens=[[1] * 50] * 40), "forward_backward"),
        (optim_step(), "optim_step"),
        (forward_backward(1, forward_only=True), "forward_backward"),
    ],
)
def test_a_lease_lost_in_the_middle_leaves_nothing_written(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step: Any, what: str
) -> None:
    rig.begin()
    rig.do(1, forward_backward())
    with monkeypatch.context() as patch:
        stored = _taken_over_before(patch, rig, what)
        rig.submit(2, step)
        rig.drain()
    assert stored
    assert _everything(rig) == stored
    assert len(rig.worker._hot) == 0
    assert not rig.op(2).state.final
    rig.restart()
    rig.drain()
    assert rig.op(2).state is OpState.COMPLETED


@pytest.mark.parametrize("kind", ["save", "save_sampler", "save_external"])
def test_a_save_that_lost_its_lease_leaves_no_artifact(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rig.begin()
    rig.do(1, forward_backward())
    rig.do(2, optim_step())
    before = rig.world.blob_keys()
    prepare = Snapshots.prepare

    def late(self: Snapshots, run: Any, seq: int) -> Any:
        prepared = prepare(self, run, seq)
        rig.world.later(LEASE_S)
        assert rig.world.open().leases.claim(RUN, "trainer-z") is not None
        return prepared

    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "prepare", late)
        rig.submit(3, save("x", OpKind(kind)))
        rig.drain()
    assert rig.world.blob_keys() == before
    assert rig.services.checkpoints.of_run(RUN) == []


def test_a_private_step_that_lost_its_lease_is_charged_once_with_the_same_noise(
    rig: Rig, new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = new_rig()
    for one in (rig, clean):
        one.begin(optimizer=private())
        one.do(1, forward_backward(1, units=[1, 2]))
    with monkeypatch.context() as patch:
        _taken_over_before(patch, rig, "optim_step")
        rig.submit(2, optim_step())
        rig.drain()
    assert not rig.op(2).state.final
    rig.restart()
    rig.drain()
    clean.do(2, optim_step())
    assert rig.result(2) == clean.result(2)
    assert rig.final() == clean.final()


def test_who_lost_the_lease_before_a_private_step_charges_nothing(rig: Rig) -> None:
    rig.begin(optimizer=private())
    rig.do(1, forward_backward(1, units=[1, 2]))
    rig.submit(2, optim_step())
    (run,) = rig.worker._hot.all()
    rig.world.later(LEASE_S)
    assert rig.world.open().leases.claim(RUN, "trainer-z") is not None
    before = _everything(rig)
    with pytest.raises(ConditionFailed):
        rig.worker._executor.execute(run, rig.op(2), optim_step()[1])
    assert _everything(rig) == before


def test_a_heartbeat_keeps_a_run_and_notices_a_loss(rig: Rig) -> None:
    rig.begin()
    rig.drain()
    (run,) = rig.worker._hot.all()
    for _ in range(5):
        rig.world.later(LEASE_S - 1)
        rig.worker._hot.beat()
    assert not run.lost
    assert rig.world.open().leases.claim(RUN, "trainer-z") is None
    rig.world.later(LEASE_S)
    assert rig.world.open().leases.claim(RUN, "trainer-z") is not None
    rig.worker._hot.beat()
    assert run.lost
    rig.worker.step()
    assert len(rig.worker._hot) == 0


def test_a_loss_is_noticed_where_the_queue_does_not_notice_an_overtaken_receipt(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQS may extend, and delete, what is in somebody else's hand: the lease decides."""
    rig.begin()
    rig.drain()
    (run,) = rig.worker._hot.all()
    rig.world.later(LEASE_S * 2)
    (message,) = rig.world.queues.receive(TRAIN, visibility_s=600)
    assert rig.world.open().leases.claim(RUN, "trainer-z") is not None
    extended: list[str] = []
    monkeypatch.setattr(rig.world.queues, "extend", lambda _, receipt, __: extended.append(receipt))
    rig.submit(1, forward_backward())
    rig.worker._hot.beat()
    assert run.lost
    assert extended == []
    rig.worker.step()
    assert len(rig.worker._hot) == 0
    assert not rig.op(1).state.final
    rig.world.queues.delete(TRAIN, message.receipt)  # and the new holder loses its message to us
    rig.world.later(LEASE_S)
    rig.restart()
    rig.services.doorbell.send_run(run.stream)  # as the sweeper does for an operation that waits
    rig.drain()
    assert rig.op(1).state is OpState.COMPLETED


def test_no_heartbeat_after_the_release(rig: Rig) -> None:
    rig.begin()
    rig.drain()
    (run,) = rig.worker._hot.all()
    rig.worker.release_all()
    rig.worker._hot._extend(run)  # the beat that was on its way
    assert run.lost
    assert not rig.services.leases.held(RUN, margin_s=0)


def test_a_beat_passes_over_what_was_forgotten_meanwhile(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.begin()
    rig.drain()
    runs = rig.worker._hot.all()
    rig.worker.release_all()
    monkeypatch.setattr(rig.worker._hot, "all", lambda: runs)
    rig.worker._hot.beat()
    assert not runs[0].lost


def test_a_storage_failure_in_a_heartbeat_is_not_a_loss(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.begin()
    rig.drain()
    (run,) = rig.worker._hot.all()

    def busy(*_: object) -> None:
        raise Unavailable("busy")

    monkeypatch.setattr(type(rig.services.leases), "extend", busy)
    rig.worker._hot.beat()
    assert not run.lost


def test_a_message_that_comes_back_to_its_holder_is_taken_as_the_new_one(rig: Rig) -> None:
    """Its visibility ran out; the run is hot, and stays so."""
    rig.begin()
    rig.drain()
    (run,) = rig.worker._hot.all()
    old = run.message.receipt
    rig.world.later(61)
    rig.worker.step()
    assert run.message.receipt != old
    rig.worker._hot.beat()
    assert not run.lost
    assert rig.do(1, forward_backward()).state is OpState.COMPLETED
    rig.worker.release_all()
    assert rig.world.drain(TRAIN) == []


def test_an_idle_run_is_saved_and_let_go(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(idle_snapshot_s=0.0, idle_release_s=0.0)
    rig.begin()
    rig.do(1, forward_backward())
    rig.worker.step()
    assert len(rig.worker._hot) == 0
    assert not rig.services.leases.held(RUN, margin_s=0)
    assert rig.world.drain(TRAIN) == []
    assert "snapshot" in rig.world.stored(rig.world.stream(RUN))
    assert not [sort for sort in rig.world.stored(rig.world.stream(RUN)) if sort.startswith("pay/")]
    assert rig.do(2, optim_step()).state is OpState.COMPLETED


def test_a_full_house_makes_room_for_who_waits(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(max_hot_runs=2, idle_snapshot_s=0.0)
    for number in range(4):
        rig.begin(f"s-1:train:{number}")
    for _ in range(10):
        rig.drain()
    assert all(rig.states(f"s-1:train:{number}") == [OpState.COMPLETED] for number in range(4))
    assert len(rig.worker._hot) <= 2


def test_a_run_that_rang_alone_makes_no_room_for_itself(new_rig: Callable[..., Rig]) -> None:
    """However much was submitted while it was cold: nobody else waits."""
    rig = new_rig(max_hot_runs=1, idle_snapshot_s=0.0)
    rig.begin()
    for seq in range(1, 21):
        rig.submit(seq, forward_backward())
    rig.drain()
    (run,) = rig.worker._hot.all()
    for _ in range(3):
        rig.worker.step()
    assert rig.worker._hot.all() == [run]
    rig.begin("s-1:train:1")
    rig.drain()
    rig.drain()
    assert run not in rig.worker._hot.all()
    assert rig.states("s-1:train:1") == [OpState.COMPLETED]


def test_a_redrive_rings_whatever_was_heard_while_the_run_was_blocked(rig: Rig) -> None:
    rig.begin()
    rig.drain()
    rig.worker.release_all()
    stream = rig.world.stream(RUN)
    rig.submit(1, forward_backward())  # rings
    rig.world.services.dead_letters.bury(stream, rig.op(1), "it died")
    rig.drain()  # heard in vain
    assert rig.world.queues.depth(TRAIN) == 0
    (letter,) = rig.world.services.dead_letters.list()
    rig.world.services.dead_letters.redrive(letter.letter_id)
    rig.drain()
    assert rig.op(1).state is OpState.COMPLETED


def test_a_queue_that_does_not_say_who_waits_keeps_nobody_from_working(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = new_rig(max_hot_runs=1, idle_snapshot_s=0.0)

    def silent(_: object) -> int:
        raise Unavailable("denied")

    monkeypatch.setattr(rig.world.queues, "depth", silent)
    for number in range(2):
        rig.begin(f"s-1:train:{number}")
    for _ in range(6):
        rig.worker.step()
    assert all(rig.states(f"s-1:train:{number}") == [OpState.COMPLETED] for number in range(2))


def test_memory_that_is_full_is_a_full_house(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(max_hot_bytes=1, idle_snapshot_s=0.0)
    rig.begin()
    rig.drain()
    for number in range(1, 5):
        rig.begin(f"s-1:train:{number}")
        rig.submit(1, forward_backward(), f"s-1:train:{number}")
    held = 0
    for _ in range(40):
        rig.worker.step()
        held = max(held, len(rig.worker._hot))
    assert all(set(rig.states(f"s-1:train:{number}")) == {OpState.COMPLETED} for number in range(5))
    assert held < 5


def test_stopping_releases_every_run_even_if_one_cannot_be_saved(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.begin()
    rig.begin(OTHER)
    rig.drain()
    saving = Snapshots.save

    def full(self: Snapshots, run: Any) -> None:
        if run.stream.stream_id == RUN:
            raise Unavailable("the disk is full")
        saving(self, run)

    monkeypatch.setattr(Snapshots, "save", full)
    rig.worker.release_all()
    for run_id in (RUN, OTHER):
        assert not rig.services.leases.held(run_id, margin_s=0)
    assert "snapshot" in rig.world.stored(rig.world.stream(OTHER))


def test_one_message_that_cannot_be_taken_does_not_hold_up_the_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.begin()
    rig.begin(OTHER)
    find = type(rig.services.streams).find

    def unlucky(self: Any, stream_id: str) -> Any:
        if stream_id == RUN:
            raise Unavailable("busy")
        return find(self, stream_id)

    with monkeypatch.context() as patch:
        patch.setattr(type(rig.services.streams), "find", unlucky)
        rig.drain()
    assert rig.states(OTHER) == [OpState.COMPLETED]
    rig.world.later(6)
    rig.drain()
    assert rig.states() == [OpState.COMPLETED]


def test_a_cancel_that_wins_against_the_start_costs_the_run_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.begin()
    rig.drain()
    rig.submit(1, forward_backward())
    rig.submit(2, optim_step())
    start = type(rig.services.outcomes).start

    def late(self: Any, operation: Any, conditions: Any, **more: Any) -> Any:
        if operation.seq == 1:
            rig.world.services.submissions.cancel(rig.world.stream(RUN), 1)
        return start(self, operation, conditions, **more)

    monkeypatch.setattr(type(rig.services.outcomes), "start", late)
    rig.drain()
    assert [state.value for state in rig.states()] == ["completed", "cancelled", "completed"]
    assert len(rig.worker._hot) == 1


def test_an_erased_run_is_dropped_and_nothing_of_it_is_written(rig: Rig) -> None:
    rig.begin()
    rig.do(1, forward_backward())
    rig.submit(2, optim_step())
    rig.world.services.streams.erase(RUN, "acme")
    rig.drain()
    rig.worker._hot.beat()
    rig.drain()
    assert len(rig.worker._hot) == 0
    assert rig.world.blob_keys() == set()
    assert {"op", "pay", "res", "snapshot"}.isdisjoint(
        sort.split("/")[0] for sort in rig.world.stored(rig.world.stream(RUN))
    )
    rig.world.later(6)
    for _ in range(3):
        rig.drain()
    assert rig.world.queues.depth(TRAIN) == 0


def test_a_short_lease_has_a_short_heartbeat(rig: Rig) -> None:
    hot = HotRuns(rig.services, TRAIN, visibility_s=60, heartbeat_s=100)
    assert hot._heartbeat_s == LEASE_S / 3


def test_the_loop_survives_a_store_that_fails_for_a_while(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_STORAGE_PAUSE_S", 0.01)
    receive, failures = rig.world.queues.receive, iter([True, True])

    def flaky(*args: Any, **given: Any) -> Any:
        if next(failures, False):
            raise Unavailable("busy")
        return receive(*args, **given)

    monkeypatch.setattr(rig.world.queues, "receive", flaky)
    rig.begin()
    stop = threading.Event()
    thread = threading.Thread(target=rig.worker.run, args=(stop,))
    thread.start()
    try:
        for _ in range(500):
            if rig.op(0).state is OpState.COMPLETED:
                break
            stop.wait(0.01)
    finally:
        stop.set()
        rig.world.bell.ring(f"queue/{TRAIN}")
        thread.join(10)
    assert not thread.is_alive()
    assert rig.op(0).state is OpState.COMPLETED
    assert not rig.services.leases.held(RUN, margin_s=0)


def test_nothing_begins_after_the_signal_to_stop(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the logs of however many runs are; what waits is there for the next process."""
    runs = (RUN, OTHER, "s-1:train:2")
    for run_id in runs:
        rig.begin(run_id)
    rig.drain()
    for run_id in runs:
        for seq in range(1, 21):
            rig.submit(seq, optim_step(), run_id)
    stop, began = threading.Event(), list[int]()
    original = Engine.optim_step

    def step(self: Engine, state: Any, params: Any, **given: Any) -> dict[str, float]:
        began.append(1)
        if len(began) == 5:
            stop.set()
        return original(self, state, params, **given)

    monkeypatch.setattr(Engine, "optim_step", step)
    rig.worker.run(stop)
    assert len(began) == 5
    assert not any(rig.services.leases.held(run_id, margin_s=0) for run_id in runs)
    rig.restart()
    rig.drain()
    assert {state for run_id in runs for state in rig.states(run_id)} == {OpState.COMPLETED}


def test_no_run_is_restored_after_the_signal_to_stop(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their messages were received together; a restoration may take half a minute, and Spot gives two."""
    runs = (RUN, OTHER, "s-1:train:2")
    for run_id in runs:
        rig.begin(run_id)
    stop, restored, restore = threading.Event(), list[str](), Restorer.restore

    def restoring(self: Restorer, run: HotRun) -> None:
        restored.append(run.stream.stream_id)
        stop.set()
        restore(self, run)

    monkeypatch.setattr(Restorer, "restore", restoring)
    rig.worker.run(stop)
    assert len(restored) == 1
    waiting = rig.services.ports.queues.receive(TRAIN, visibility_s=1, max_messages=10)
    assert {message.receives for message in waiting} == {1}  # as far from the dead queue as before
    assert {message.body["stream"] for message in waiting} >= set(runs) - set(restored)
    assert not any(rig.services.leases.held(run_id, margin_s=0) for run_id in runs)
    monkeypatch.undo()
    rig.restart()
    rig.drain()
    assert {state for run_id in runs for state in rig.states(run_id)} == {OpState.COMPLETED}


def test_a_beginning_whose_answer_is_lost_is_no_try(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that fails is no operation's fault, though it took what it does not own up to."""
    rig.begin()
    rig.drain()
    rig.submit(1, optim_step())
    outcomes, lost = rig.worker._services.outcomes, list[int]()
    start = outcomes.start

    def losing(*given: Any, **named: Any) -> Operation:
        begun = start(*given, **named)
        if len(lost) < 4:
            lost.append(1)
            raise Unavailable("x")
        return begun

    monkeypatch.setattr(outcomes, "start", losing)
    for _ in range(8):
        rig.worker.step()
        rig.world.later(LEASE_S)
        rig.ring_again()
    assert len(lost) == 4
    rig.drain()
    assert (rig.op(1).state, rig.op(1).tries) == (OpState.COMPLETED, 1)


def test_leases_are_kept_until_the_last_run_is_released(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.begin()
    rig.drain()
    monkeypatch.setattr(rig.worker._hot, "_heartbeat_s", 0.01)
    stop, beats = threading.Event(), threading.Event()
    saving = Snapshots.save

    def slow(self: Snapshots, run: Any) -> None:
        monkeypatch.setattr(HotRuns, "_extend", lambda *_: beats.set())
        assert beats.wait(5)
        saving(self, run)

    monkeypatch.setattr(Snapshots, "save", slow)
    stop.set()
    rig.worker.run(stop)
    assert beats.is_set()


@pytest.mark.parametrize("failing", ["put", "get"])
def test_a_blob_store_that_is_away_is_no_operations_fault(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    rig = new_rig(storage_retry_s=0.0)
    rig.begin()
    rig.do(1, forward_backward())
    rig.do(2, save("kept"))
    rig.submit(3, save("new"))
    rig.restart()

    def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("full")

    with monkeypatch.context() as patch:
        patch.setattr(rig.world.blobs, failing, away)
        for _ in range(12):
            rig.drain()
            rig.ring_again()
    rig.drain()
    assert rig.op(3).state is OpState.COMPLETED
    assert rig.services.dead_letters.list() == []


def test_deaths_with_the_supervisor_are_not_counted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole service is killed again and again while one operation runs."""
    with monkeypatch.context() as patch:
        _poisoned(patch, Killed)
        rig.begin()
        rig.submit(1, optim_step(0.666))
        for _ in range(5):
            owner = rig.worker._owner
            with pytest.raises(Killed):
                rig.drain()
            assert rig.services.sweeper.forgive(owner) == 1
            rig.services.leases.break_all(owner, counted=False)
            rig.restart()
    rig.drain()
    assert rig.op(1).state is OpState.COMPLETED


def test_lease_lost_is_what_a_dropped_run_raises(rig: Rig) -> None:
    rig.begin()
    rig.drain()
    (run,) = rig.worker._hot.all()
    rig.world.services.streams.erase(RUN, "acme")
    with pytest.raises(LeaseLost):
        rig.services.leases.extend(run.lease)


def test_a_dead_worker_s_message_comes_back_soon_after_its_lease() -> None:
    assert WorkerSettings().for_lease(30).visibility_s == 60
    assert WorkerSettings().for_lease(3).visibility_s == 6
    assert WorkerSettings().for_lease(600).visibility_s == 60  # the heartbeat extends it
