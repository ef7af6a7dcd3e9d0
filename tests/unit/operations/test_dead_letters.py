"""Poison is set aside with its cause; what is behind it fails fast; everything else goes on."""

from __future__ import annotations

import pytest

from tensafe.contracts.errors import Conflict, NotFound, RunBlocked
from tensafe.operations import completions
from tensafe.operations.leases import MAX_TRIES
from tensafe.operations.records import Operation, OpState, StreamRecord, StreamState
from tensafe.storage.ports import ConditionFailed
from tests.unit.operations.world import LEASE_S, SAMPLE, TRAIN, World


def _poison(world: World, run: StreamRecord, seq: int = 1) -> Operation:
    """An operation that MAX_TRIES trainers began and did not end, each in the hands of nobody now."""
    operation = world.submit(run, seq)
    for _ in range(MAX_TRIES):
        lease = world.claim(run)
        world.services.leases.restored(lease)
        operation = world.services.outcomes.start(operation, [lease.check])
        world.later(LEASE_S)
    return operation


def test_burying_fails_the_operation_blocks_the_run_and_fails_what_waits(either: World) -> None:
    run = either.run()
    for seq in (1, 2, 4):
        either.submit(run, seq)
    either.services.submissions.cancel(run, 4)
    either.services.dead_letters.bury(run, either.op(run, 1), "the trainer was killed")
    dead, waiting = either.op(run, 1), either.op(run, 2)
    assert dead.failure is not None
    assert (dead.failure.code, dead.failure.message) == ("dead_letter", "the trainer was killed")
    assert waiting.failure is not None
    assert (waiting.failure.code, waiting.failure.category) == ("run_blocked", "user")
    assert "operation 1 (noop)" in waiting.failure.message
    assert either.op(run, 4).state is OpState.CANCELLED
    assert either.stream(run.stream_id).state is StreamState.BLOCKED
    assert either.markers() == []
    with pytest.raises(RunBlocked, match="operation 1"):
        either.submit(run, 5)
    with pytest.raises(RunBlocked, match="operation 1"):
        either.append(run)


def test_other_runs_go_on(memory: World) -> None:
    run, other = memory.run("s:train:0"), memory.run("s:train:1")
    memory.submit(other, 1)
    memory.services.dead_letters.bury(run, memory.submit(run, 1), "it died")
    assert memory.op(other, 1).state is OpState.PENDING
    memory.complete(other, memory.op(other, 1))
    memory.submit(other, 2)


def test_the_burier_s_rival_loses_the_right_to_write(memory: World) -> None:
    run = memory.run()
    operation = memory.submit(run, 1)
    lease = memory.claim(run)
    memory.services.dead_letters.bury(run, operation, "it died")
    with pytest.raises(ConditionFailed):
        memory.services.outcomes.start(operation, [lease.check])
    with pytest.raises(ConditionFailed):
        memory.items.write([lease.check])


def test_three_tries_make_poison(memory: World) -> None:
    run = memory.run()
    operation = _poison(memory, run)
    assert memory.services.dead_letters.bury_poison(run, operation)
    failure = memory.op(run, 1).failure
    assert failure is not None
    assert failure.message == "3 tries of this noop operation failed: its process was killed"


def test_two_tries_do_not(memory: World) -> None:
    run = memory.run()
    operation = memory.submit(run, 1)
    for _ in range(MAX_TRIES - 1):
        operation = memory.services.outcomes.start(operation, [])
    assert not memory.services.dead_letters.bury_poison(run, operation)
    assert memory.op(run, 1).state is OpState.RUNNING


def test_a_third_try_that_goes_on_is_let_go_on(memory: World) -> None:
    run = memory.run()
    operation = _poison(memory, run)
    memory.claim(run, "trainer-b")
    assert not memory.services.dead_letters.bury_poison(run, operation)
    memory.services.dead_letters.settle(run)
    assert memory.stream(run.stream_id).state is StreamState.ACTIVE
    assert memory.drain(TRAIN)[-1] == {"stream": run.stream_id}


def test_a_restore_that_kills_is_poison_too(memory: World) -> None:
    run = memory.run()
    operation = memory.submit(run, 1)
    for _ in range(MAX_TRIES):
        memory.claim(run)
        memory.later(LEASE_S)
    assert memory.services.dead_letters.bury_poison(run, operation)
    failure = memory.op(run, 1).failure
    assert failure is not None
    assert "3 tries to restore the run for this noop operation failed" in failure.message


def test_the_cause_names_what_the_last_try_raised(memory: World) -> None:
    run = memory.run()
    operation = _poison(memory, run)
    memory.services.leases.abandon(memory.claim(run), "OutOfMemoryError")
    memory.services.dead_letters.bury_poison(run, operation)
    failure = memory.op(run, 1).failure
    assert failure is not None
    assert failure.message.endswith("failed: OutOfMemoryError")


def test_letters_are_listed_shown_and_kept_to_their_tenant(memory: World) -> None:
    mine = [memory.run(f"s:train:{number}") for number in range(3)]
    theirs = [memory.run(f"t:train:{number}", "rival") for number in range(120)]
    for run in (*theirs, *mine):
        memory.later(1)
        memory.services.dead_letters.bury(run, memory.submit(run, 1), "it died")
    letters = memory.services.dead_letters.list("acme")
    assert [letter.stream_id for letter in letters] == [run.stream_id for run in mine]
    assert len(memory.services.dead_letters.list()) == 100
    assert len(memory.services.dead_letters.list(limit=500)) == 123
    assert memory.services.dead_letters.show(letters[0].letter_id) == letters[0]
    assert (letters[0].seq, letters[0].kind, letters[0].cause) == (1, "noop", "it died")
    with pytest.raises(NotFound):
        memory.services.dead_letters.show("000/none/1")


def test_redriving_opens_the_operation_and_the_run_again(either: World) -> None:
    run = either.run()
    _poison(either, run)
    either.submit(run, 2)
    either.services.dead_letters.bury_poison(run, either.op(run, 1))
    either.drain(TRAIN)
    (letter,) = either.services.dead_letters.list()
    either.services.dead_letters.redrive(letter.letter_id)
    again = either.op(run, 1)
    assert (again.state, again.failure, again.tries) == (OpState.PENDING, None, 0)
    assert either.op(run, 2).state is OpState.FAILED
    assert either.services.outcomes.payload(run, 1) == b"{}"
    assert either.drain(TRAIN) == [{"stream": run.stream_id}]
    assert len(either.markers()) == 1
    assert either.services.dead_letters.list() == []
    assert not either.services.dead_letters.bury_poison(either.stream(run.stream_id), again)
    either.complete(run, again)
    either.submit(either.stream(run.stream_id), 3)


def test_redriving_needs_a_letter_a_run_and_a_failed_operation(memory: World) -> None:
    letters = memory.services.dead_letters
    with pytest.raises(NotFound):
        letters.redrive("000/none/1")
    run = memory.run()
    letters.bury(run, memory.submit(run, 1), "it died")
    (letter,) = letters.list()
    letters.redrive(letter.letter_id)
    with pytest.raises(NotFound):
        letters.redrive(letter.letter_id)


def test_a_redrive_that_loses_a_race_is_a_conflict(memory: World) -> None:
    run = memory.run()
    memory.services.dead_letters.bury(run, memory.submit(run, 1), "it died")
    (letter,) = memory.services.dead_letters.list()

    class Losing:
        """The rival redrives just before our write."""

        def __getattr__(self, name: str) -> object:
            return getattr(memory.items, name)

        def write(self, writes) -> None:
            memory.services.dead_letters.redrive(letter.letter_id)
            memory.items.write(writes)

    with pytest.raises(Conflict):
        memory.open(items=Losing()).dead_letters.redrive(letter.letter_id)
    assert memory.op(run, 1).state is OpState.PENDING


def test_a_dead_message_of_a_run_without_poison_rings_again(either: World) -> None:
    run = either.run()
    either.submit(run, 1)
    for _ in range(3):
        (message,) = either.queues.receive(TRAIN, visibility_s=1)
        either.queues.extend(TRAIN, message.receipt, 0)
    assert either.queues.receive(TRAIN, visibility_s=1) == []
    specs = either.services.ports.queue_specs
    assert either.services.dead_letters.consume(either.queues, specs) == 1
    assert either.services.dead_letters.consume(either.queues, specs) == 0
    assert either.op(run, 1).state is OpState.PENDING
    assert either.drain(TRAIN) == [{"stream": run.stream_id}]


def test_a_dead_message_of_a_poisoned_run_buries(memory: World) -> None:
    run = memory.run()
    _poison(memory, run)
    memory.drain(TRAIN)
    memory.queues.send(TRAIN, {"stream": run.stream_id}, group=run.stream_id)
    for _ in range(3):
        (message,) = memory.queues.receive(TRAIN, visibility_s=1)
        memory.queues.extend(TRAIN, message.receipt, 0)
    memory.queues.receive(TRAIN, visibility_s=1)
    assert memory.services.dead_letters.consume(memory.queues, memory.services.ports.queue_specs) == 1
    assert [letter.seq for letter in memory.services.dead_letters.list()] == [1]


def _give_up(world: World) -> None:
    """Every message that can be received is received until the queue gives it up."""
    for _ in range(3):
        for message in world.queues.receive(SAMPLE, visibility_s=1, max_messages=10):
            world.queues.extend(SAMPLE, message.receipt, 0)
    world.queues.receive(SAMPLE, visibility_s=60, max_messages=10)
    world.services.dead_letters.consume(world.queues, world.services.ports.queue_specs)


def test_a_dead_sample_is_buried_alone(memory: World) -> None:
    sampler = memory.sampler()
    poison, innocent = memory.submit(sampler, 1), memory.submit(sampler, 2)
    for _ in range(MAX_TRIES):
        poison = memory.services.outcomes.start(poison, [], owner="sampler-dead")
    memory.services.outcomes.start(innocent, [], owner="sampler-dead")
    _give_up(memory)
    assert memory.op(sampler, 1).failure is not None
    assert memory.op(sampler, 2).state is OpState.RUNNING
    assert memory.drain(SAMPLE) == [{"stream": sampler.stream_id, "seq": 2}]
    assert memory.stream(sampler.stream_id).state is StreamState.ACTIVE
    found = completions.since(memory.items, sampler.stream_id, 0, 0)
    assert [one.seq for one in found] == [1]


def test_a_message_given_up_says_nothing_about_its_sample(memory: World) -> None:
    """Samplers may have died with it in hand and never have begun it."""
    sampler = memory.sampler()
    memory.submit(sampler, 1)
    _give_up(memory)
    assert memory.op(sampler, 1).state is OpState.PENDING
    assert memory.drain(SAMPLE) == [{"stream": sampler.stream_id, "seq": 1}]


def test_a_third_try_of_a_sample_that_goes_on_is_let_go_on(memory: World) -> None:
    sampler = memory.sampler()
    operation = memory.submit(sampler, 1)
    for _ in range(MAX_TRIES):
        operation = memory.services.outcomes.start(operation, [], owner="sampler-a")
    memory.services.workers.announce("sampler", "acme/tiny", "sampler-a", 0)
    assert not memory.services.dead_letters.bury_poison(sampler, operation)
    memory.services.workers.withdraw("sampler-a")
    assert memory.services.dead_letters.bury_poison(sampler, operation)


def test_a_redrive_in_the_middle_of_a_burial_is_not_undone(memory: World) -> None:
    run = memory.run()
    operation = _poison(memory, run)
    memory.submit(run, 2)
    memory.services.dead_letters.bury(run, operation, "it died")
    (letter,) = memory.services.dead_letters.list()
    late = memory.open()
    listed = late.outcomes.operations

    def redriven_first(*args: object, **kwargs: object) -> list[Operation]:
        if memory.services.dead_letters.list():
            memory.services.dead_letters.redrive(letter.letter_id)
        return listed(*args, **kwargs)

    late.outcomes.operations = redriven_first  # type: ignore[method-assign]
    late.dead_letters.fail_waiting(run.stream_id)
    assert memory.op(run, 1).state is OpState.PENDING


def test_a_burial_cut_short_is_finished_without_burying_the_next_operation(memory: World) -> None:
    """The process dies between the transaction that blocks the run and failing what waits."""
    run = memory.run()
    operation = _poison(memory, run)
    memory.submit(run, 2)

    class Dying:
        """Answers no write after the first."""

        def __init__(self) -> None:
            self.left = 1

        def __getattr__(self, name: str) -> object:
            return getattr(memory.items, name)

        def write(self, writes) -> None:
            if self.left == 0:
                raise SystemError("killed")
            self.left -= 1
            memory.items.write(writes)

    with pytest.raises(SystemError):
        memory.open(items=Dying()).dead_letters.bury_poison(run, operation)
    assert memory.op(run, 2).state is OpState.PENDING
    memory.services.dead_letters.settle(memory.stream(run.stream_id))
    second = memory.op(run, 2).failure
    assert second is not None
    assert second.code == "run_blocked"
    assert [letter.seq for letter in memory.services.dead_letters.list()] == [1]


def test_one_dead_message_that_cannot_be_settled_does_not_hold_up_the_others(memory: World) -> None:
    first, second = memory.run("s:train:0"), memory.run("s:train:1")
    for run in (first, second):
        memory.submit(run, 1)
        for _ in range(4):
            for message in memory.queues.receive(TRAIN, visibility_s=1, max_messages=10):
                memory.queues.extend(TRAIN, message.receipt, 0)
    services = memory.open()
    settle = services.dead_letters.settle

    def failing(stream: StreamRecord) -> None:
        if stream.stream_id == first.stream_id:
            raise NotFound("unlucky")
        settle(stream)

    object.__setattr__(services.dead_letters, "settle", failing)
    assert services.dead_letters.consume(memory.queues, services.ports.queue_specs) == 1
    assert memory.drain(TRAIN) == [{"stream": second.stream_id}]
    memory.later(61)
    assert memory.services.dead_letters.consume(memory.queues, services.ports.queue_specs) == 1
