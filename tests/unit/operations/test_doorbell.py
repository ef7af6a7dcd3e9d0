"""Messages are doorbells: elided while a run is held, sent again when they may be lost."""

from __future__ import annotations

from typing import Any

import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.operations import layout
from tensafe.operations.doorbell import queue_specs, sample_queue, train_queue
from tensafe.operations.records import OpKind, OpState, StreamKind
from tensafe.operations.submissions import Submission
from tensafe.storage.ports import Item, Items, Key, Put, Queues
from tests.support.faulty_ports import Killed
from tests.unit.operations.world import BASE, LEASE_S, SAMPLE, TRAIN, World


def test_submitting_rings_for_a_run_that_nobody_holds(either: World) -> None:
    run = either.run()
    heard = either.bell.count(layout.submitted_topic(TRAIN))
    either.submit(run, 1)
    assert either.bell.count(layout.submitted_topic(TRAIN)) > heard
    assert either.drain(TRAIN) == [{"stream": run.stream_id}]


def test_a_held_run_needs_no_message_and_hears_the_bell(memory: World) -> None:
    run = memory.run()
    memory.claim(run)
    heard = memory.bell.count(layout.submitted_topic(TRAIN))
    memory.submit(run, 1)
    assert memory.drain(TRAIN) == []
    assert memory.bell.count(layout.submitted_topic(TRAIN)) > heard


def test_a_run_rings_once_while_it_is_free_whoever_submits(either: World) -> None:
    """200 operations by four processes: the queue has one message, which is what scaling counts."""
    run = either.run()
    edges = [either.open().submissions for _ in range(4)]
    for seq in range(1, 201):
        edges[seq % 4].submit(run, Submission(seq, OpKind.NOOP, b"{}"))
    assert either.queues.depth(TRAIN) == 1
    either.services.leases.release(either.claim(run))
    for seq in range(201, 211):
        edges[seq % 4].submit(run, Submission(seq, OpKind.NOOP, b"{}"))
    assert either.queues.depth(TRAIN) == 2  # one for each of its free periods


def test_a_message_that_was_heard_in_vain_is_no_reason_to_be_silent(either: World) -> None:
    """Who received it looked at the log before the next operation was there, and deletes it."""
    run = either.run()
    for seq in (1, 2, 3):
        either.services.submissions.cancel(run, either.submit(run, seq).seq)
        assert either.drain(TRAIN) == [{"stream": run.stream_id}]


def test_a_dead_letter_that_was_settled_in_vain_is_no_reason_to_be_silent(either: World) -> None:
    """Its message was received and died three times, and what it rang for was cancelled meanwhile."""
    run = either.run()
    for seq in (1, 2, 3):
        either.services.submissions.cancel(run, either.submit(run, seq).seq)
        (message,) = either.queues.receive(TRAIN, max_messages=10, visibility_s=60)
        either.services.dead_letters.settle_message(message.body)
        either.queues.delete(TRAIN, message.receipt)


def test_who_rings_after_another_died_before_it_rang_is_heard(either: World) -> None:
    """The period is not rung for by the operation, but by its message."""
    run = either.run()
    dead = either.open(queues=_Dead(either.queues)).submissions
    with pytest.raises(Killed):
        dead.submit(run, Submission(1, OpKind.NOOP, b"{}"))
    assert either.op(run, 1).state is OpState.PENDING
    assert either.queues.depth(TRAIN) == 0
    either.submit(run, 2)
    assert either.queues.depth(TRAIN) == 1


def test_a_retry_and_the_sweeper_ring_for_who_died_before_it_rang(either: World) -> None:
    runs = [either.run(f"s:train:{number}") for number in range(2)]
    dead = either.open(queues=_Dead(either.queues)).submissions
    for run in runs:
        with pytest.raises(Killed):
            dead.submit(run, Submission(1, OpKind.NOOP, b"{}"))
    either.submit(runs[0], 1)
    assert either.drain(TRAIN) == [{"stream": runs[0].stream_id}]
    either.later(16)
    either.services.sweeper.sweep()
    assert {"stream": runs[1].stream_id} in either.drain(TRAIN)


def test_a_run_that_is_given_up_with_work_rings_once(either: World) -> None:
    run = either.run()
    lease = either.claim(run)
    either.submit(run, 1)
    either.services.leases.release(lease)
    either.services.doorbell.released(run)
    either.submit(run, 2)
    assert either.queues.depth(TRAIN) == 1


def test_hearing_leaves_a_lease_that_is_held_alone(memory: World) -> None:
    run = memory.run()
    lease = memory.claim(run)
    before = memory.items.get(layout.stream_item(run.stream_id, "lease"))
    memory.services.doorbell.heard(run.stream_id)
    assert memory.items.get(layout.stream_item(run.stream_id, "lease")) == before
    memory.later(LEASE_S - 4)  # about to run out: who submits takes it for free
    memory.submit(run, 1)
    assert memory.drain(TRAIN) == [{"stream": run.stream_id}]
    memory.submit(run, 2)
    assert memory.queues.depth(TRAIN) == 1
    memory.services.leases.extend(lease)


class _Dead:
    """The queues as a process sees them that is killed before it sends."""

    def __init__(self, inner: Queues) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, *_: object, **__: object) -> None:
        raise Killed


@pytest.mark.parametrize("left_s", [0.0, 4.0])
def test_a_lease_about_to_run_out_counts_as_free(memory: World, left_s: float) -> None:
    run = memory.run()
    memory.claim(run)
    memory.later(LEASE_S - left_s)
    memory.submit(run, 1)
    assert memory.drain(TRAIN) == [{"stream": run.stream_id}]


def test_every_request_of_a_sampling_session_has_its_message(memory: World) -> None:
    sampler = memory.sampler()
    for seq in (1, 2):
        memory.submit(sampler, seq)
    assert [body["seq"] for body in memory.drain(SAMPLE)] == [1, 2]


def test_an_end_is_announced(memory: World) -> None:
    run = memory.run()
    heard = memory.bell.count(layout.finished_topic(run.stream_id))
    memory.complete(run, memory.submit(run, 1))
    assert memory.bell.count(layout.finished_topic(run.stream_id)) == heard + 1


def test_queue_names_suit_every_store_and_tell_models_apart() -> None:
    names = ["Qwen/Qwen3-0.6B", "Qwen/Qwen3_0.6B", "a" * 300, "../../etc", "Ünïcode/модель"]
    specs = queue_specs(names)
    assert len({spec.name for spec in specs}) == 2 * len(names)
    assert all(len(spec.dead_queue) <= 75 and spec.name.replace("-", "").isalnum() for spec in specs)
    assert train_queue(BASE) != sample_queue(BASE)


def test_a_lost_message_is_sent_again(either: World) -> None:
    run, sampler = either.run(), either.sampler()
    either.submit(run, 1)
    either.submit(sampler, 1)
    either.drain(TRAIN)
    either.drain(SAMPLE)
    assert either.services.sweeper.sweep() == 0  # they are young
    either.later(16)
    assert either.services.sweeper.sweep() == 2
    assert either.drain(TRAIN) == [{"stream": run.stream_id}]
    assert either.drain(SAMPLE) == [{"stream": sampler.stream_id, "seq": 1}]


def _messages_sent(world: World, queue: str, seconds: int) -> int:
    """While the sweeper runs every five seconds and nobody takes anything."""
    for _ in range(seconds // 5):
        world.later(5)
        world.services.sweeper.sweep()
    return world.queues.depth(queue)


def test_a_backlog_is_not_made_longer_by_reminders(either: World) -> None:
    sampler = either.sampler()
    for seq in range(1, 11):
        either.submit(sampler, seq)
    assert _messages_sent(either, SAMPLE, 300) <= 10 * (1 + 4)
    assert either.services.sweeper.sweep() == 0


def test_reminders_of_a_run_thin_out_too(memory: World) -> None:
    run = memory.run()
    memory.submit(run, 1)
    memory.drain(TRAIN)
    assert 1 <= _messages_sent(memory, TRAIN, 60) <= 2
    assert _messages_sent(memory, TRAIN, 540) <= 6


def test_while_no_worker_lives_a_queue_that_has_messages_gets_no_reminders(either: World) -> None:
    """A cold start takes minutes: scaling would count each reminder as one more run."""
    run, sampler = either.run(), either.sampler()
    either.submit(run, 1)
    either.submit(sampler, 1)
    assert _messages_sent(either, TRAIN, 595) == 1
    assert either.queues.depth(SAMPLE) == 1
    assert _messages_sent(either, TRAIN, 5) == 2  # in case the queue has lost just this one


def test_a_worker_that_lives_is_reminded(memory: World) -> None:
    """What is in the queue may be the messages of others: those of runs that it holds, say."""
    run, other = memory.run("s:train:0"), memory.run("s:train:1")
    memory.submit(run, 1)
    memory.drain(TRAIN)
    memory.submit(other, 1)
    memory.later(16)
    memory.services.workers.announce("sampler", BASE, "sampler-a", 0)
    assert memory.services.sweeper.sweep() == 0
    memory.services.workers.announce("trainer", BASE, "trainer-a", 0)
    assert memory.services.sweeper.sweep() == 2
    assert {body["stream"] for body in memory.drain(TRAIN)} == {run.stream_id, other.stream_id}


def test_a_queue_that_does_not_say_what_it_has_is_reminded(
    memory: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_: object) -> int:
        raise Unavailable("denied")

    memory.submit(memory.run(), 1)
    memory.later(16)
    monkeypatch.setattr(memory.queues, "depth", silent)
    assert memory.services.sweeper.sweep() == 1


def test_what_a_live_sampler_runs_needs_no_reminder(memory: World) -> None:
    sampler = memory.sampler()
    memory.services.outcomes.start(memory.submit(sampler, 1), [], owner="sampler-a")
    memory.drain(SAMPLE)
    memory.services.workers.announce("sampler", BASE, "sampler-a", 0)
    memory.later(16)
    assert memory.services.sweeper.sweep() == 0
    memory.services.workers.withdraw("sampler-a")
    assert memory.services.sweeper.sweep() == 1


def test_a_model_that_is_not_served_holds_up_no_other_run(memory: World) -> None:
    for number in range(40):
        memory.submit(memory.run(f"s:train:{number}"), 1)
    stranger, creation = memory.services.streams.creation("z:train:0", "acme", StreamKind.RUN, "gone/model")
    memory.services.submissions.create(stranger, creation, Submission(0, OpKind.NOOP, b"{}", ring=False))
    memory.drain(TRAIN)
    memory.later(16)
    assert memory.services.sweeper.sweep() == 40


def test_a_death_that_was_nobodys_fault_is_not_counted(either: World) -> None:
    run, sampler = either.run(), either.sampler()
    lease = either.services.leases.claim(run.stream_id, "trainer-a")
    assert lease is not None
    either.services.outcomes.start(either.submit(run, 1), [lease.check], owner="trainer-a")
    either.services.outcomes.start(either.submit(sampler, 1), [], owner="sampler-a")
    either.services.outcomes.start(either.submit(sampler, 2), [], owner="sampler-b")
    for owner in ("trainer-a", "sampler-a"):
        assert either.services.sweeper.forgive(owner) == 1
        assert either.services.sweeper.forgive(owner) == 0
        either.services.leases.break_all(owner, counted=False)
    assert [op.tries for op in (either.op(run, 1), either.op(sampler, 1), either.op(sampler, 2))] == [0, 0, 1]
    assert either.op(run, 1).state is OpState.PENDING
    assert either.services.leases.claims(run.stream_id) == 0


def test_a_held_run_is_left_to_its_holder(memory: World) -> None:
    run = memory.run()
    memory.submit(run, 1)
    memory.drain(TRAIN)
    memory.later(16)
    memory.claim(run)
    assert memory.services.sweeper.sweep() == 0
    memory.later(LEASE_S)
    assert memory.services.sweeper.sweep() == 1


def test_a_run_is_reminded_once_whatever_waits_in_it(memory: World) -> None:
    run = memory.run()
    for seq in range(1, 20):
        memory.submit(run, seq)
    memory.drain(TRAIN)
    memory.later(16)
    assert memory.services.sweeper.sweep() == 1
    assert memory.drain(TRAIN) == [{"stream": run.stream_id}]


def test_a_long_queue_hides_no_other_run_from_the_sweep(memory: World) -> None:
    """One run with more markers than a page, and a younger one in the same shard behind them."""
    busy = memory.run("s:train:0")
    shard = layout.pending_item(busy.stream_id, 1, 0).partition
    names = (f"s:train:{number}" for number in range(1, 1000))
    other_id = next(name for name in names if layout.pending_item(name, 1, 0).partition == shard)
    for seq in range(1, 211):
        memory.submit(busy, seq)
    memory.later(1)
    other = memory.run(other_id)
    memory.submit(other, 1)
    memory.drain(TRAIN)
    memory.later(16)
    assert memory.services.sweeper.sweep() == 2
    assert {body["stream"] for body in memory.drain(TRAIN)} == {busy.stream_id, other.stream_id}


class _Counted:
    """Items that note what of streams is read, one by one."""

    def __init__(self, inner: Items) -> None:
        self._inner = inner
        self.read: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get(self, key: Key) -> Item | None:
        self.read.append(f"{key.partition} {key.sort}")
        return self._inner.get(key)


def test_what_is_not_due_is_not_read(either: World) -> None:
    run, sampler = either.run(), either.sampler()
    for seq in range(1, 6):
        either.submit(run, seq)
        either.submit(sampler, seq)
    either.drain(TRAIN)
    either.drain(SAMPLE)
    items = _Counted(either.items)
    sweeper = either.open(items=items).sweeper
    either.later(16)
    assert sweeper.sweep() == 6  # the run once, and each sample
    assert len(items.read) >= 12
    items.read.clear()
    either.later(30)
    assert sweeper.sweep() == 0
    assert items.read == []
    either.drain(TRAIN)
    either.drain(SAMPLE)
    items.read.clear()
    either.later(40)
    assert sweeper.sweep() == 6


def test_a_sweep_that_runs_out_of_time_goes_on_where_it_stopped(either: World) -> None:
    """Each marker takes a second of its three, and no run waits for more than the passes of one round."""
    runs = [either.run(f"s:train:{number}") for number in range(40)]
    for run in runs:
        either.submit(run, 1)
    either.drain(TRAIN)
    either.later(16)
    ticks = iter(range(10**6))
    services = either.open()
    sweeper = services.sweeper
    sweeper._clock_s = lambda: float(next(ticks))
    rung: list[str] = []
    for _ in range(15):  # of 3 each, but that a round ends with a pass
        assert sweeper.sweep(limit_s=4.0) <= 3
        rung += [body["stream"] for body in either.drain(TRAIN)]
        either.services.workers.announce("trainer", BASE, "trainer-a", 0)
    assert sorted(rung) == sorted(run.stream_id for run in runs)  # each once
    assert sweeper.sweep(limit_s=10**6) == 0
    assert sweeper.sweep(limit_s=0.0) == 0


def test_markers_without_an_open_operation_are_removed(memory: World) -> None:
    run, erased = memory.run("s:train:0"), memory.run("s:train:1")
    memory.complete(run, memory.submit(run, 1))
    memory.submit(erased, 1)
    memory.services.streams.erase(erased.stream_id, "acme")
    for stream_id, seq in ((run.stream_id, 1), (erased.stream_id, 1), ("s:train:9", 4)):
        memory.items.write([Put(layout.pending_item(stream_id, seq, memory.now_ms), {}, 0)])
    memory.later(16)
    assert memory.services.sweeper.sweep() == 0
    assert memory.markers() == []
    assert memory.drain(TRAIN + "-dead") == []
