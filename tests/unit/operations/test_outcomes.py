"""What workers write: started, completed, failed; what is kept, and for how long."""

from __future__ import annotations

import pytest

from tensafe.contracts.errors import Gone, IntegrityError, NotFound
from tensafe.operations import completions, layout
from tensafe.operations.outcomes import RESULT_TTL_S
from tensafe.operations.records import Failure, OpKind, OpState, Result
from tensafe.storage.ports import ConditionFailed, Delete, Put
from tests.unit.operations.world import World


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537])
def test_a_result_is_read_as_it_was_written(either: World, size: int) -> None:
    run = either.run()
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    either.complete(run, either.submit(run, 1), data)
    operation = either.op(run, 1)
    assert operation.state is OpState.COMPLETED
    assert operation.result_size_bytes == size
    assert either.services.outcomes.result(run, operation) == Result("application/json", data)
    assert len(either.blob_keys()) == (1 if size > 65_536 else 0)
    assert either.markers() == []


def test_results_and_payloads_rest_sealed(memory: World) -> None:
    run = memory.run()
    memory.complete(run, memory.submit(run, 1, b"secret prompt"), b"secret answer")
    for item in memory.partition(layout.stream_partition(run.stream_id)):
        assert b"secret" not in item.sealed + repr(item.body).encode()


def test_a_result_of_another_operation_does_not_open(memory: World) -> None:
    run = memory.run()
    for seq in (1, 2):
        memory.complete(run, memory.submit(run, seq), f"result {seq}".encode())
    moved = memory.items.get(layout.result_item(run.stream_id, 1))
    other = memory.items.get(layout.result_item(run.stream_id, 2))
    assert moved is not None
    assert other is not None
    memory.items.write([Put(other.key, moved.body, other.version, sealed=moved.sealed)])
    with pytest.raises(IntegrityError):
        memory.services.outcomes.result(run, memory.op(run, 2))


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_result_expires_and_its_record_stays(memory: World, size: int) -> None:
    run = memory.run()
    memory.complete(run, memory.submit(run, 1), b"x" * size)
    memory.later(RESULT_TTL_S - 1)
    assert memory.services.outcomes.result(run, memory.op(run, 1)).data == b"x" * size
    memory.later(2)
    assert memory.op(run, 1).state is OpState.COMPLETED
    with pytest.raises(Gone):
        memory.services.outcomes.result(run, memory.op(run, 1))
    memory.services.retention.purge()
    assert memory.blob_keys() == set()


def test_every_start_is_a_try(memory: World) -> None:
    run = memory.run()
    operation = memory.submit(run, 1)
    for tries in (1, 2, 3):
        operation = memory.services.outcomes.start(operation, [])
        assert operation == memory.op(run, 1)
        assert (operation.state, operation.tries) == (OpState.RUNNING, tries)


def test_an_operation_ends_once(either: World) -> None:
    run = either.run()
    running = either.services.outcomes.start(either.submit(run, 1), [])
    either.services.outcomes.fail(run, running, Failure("no", "first", "user"))
    for end in (
        lambda: either.services.outcomes.fail(run, running, Failure("no", "second", "user")),
        lambda: either.services.outcomes.complete(run, running, Result("text/plain", b"x" * 100_000)),
    ):
        with pytest.raises(ConditionFailed):
            end()
    stored = either.op(run, 1)
    assert stored.failure == Failure("no", "first", "user")
    assert either.blob_keys() == set()
    with pytest.raises(Gone):
        either.services.outcomes.result(run, stored)


def test_payloads_are_discarded_up_to_a_seq(either: World) -> None:
    run = either.run()
    outcomes = either.services.outcomes
    for seq in range(1, 101):
        either.submit(run, seq, b"x" * (100_000 if seq % 25 == 0 else 1))
    assert len(either.blob_keys()) == 4
    outcomes.discard_payloads(run, 0, 97)
    outcomes.discard_payloads(run, 0, 97)
    for seq in (0, 1, 50, 97):
        with pytest.raises(Gone):
            outcomes.payload(run, seq)
    assert outcomes.payload(run, 98) == b"x"
    assert outcomes.payload(run, 100) == b"x" * 100_000
    assert len(either.blob_keys()) == 1


def test_what_is_absent_is_not_found(memory: World) -> None:
    run = memory.run()
    assert memory.services.outcomes.peek(run.stream_id, 7) is None
    with pytest.raises(NotFound):
        memory.services.outcomes.get(run, 7)
    with pytest.raises(Gone):
        memory.services.outcomes.payload(run, 7)


def test_the_first_open_operation_is_looked_for_past_many_ended_ones(memory: World) -> None:
    run = memory.run()
    for seq in range(1, 120):
        memory.fail(run, memory.submit(run, seq))
    assert memory.services.outcomes.first_open(run.stream_id) is None
    memory.submit(run, 130)
    opened = memory.services.outcomes.first_open(run.stream_id)
    assert opened is not None
    assert opened.seq == 130


def test_a_sample_leaves_nothing_once_its_result_has_expired(either: World) -> None:
    sampler = either.sampler()
    for seq in range(1, 6):
        either.submit(sampler, seq, kind=OpKind.SAMPLE)
    either.complete(sampler, either.op(sampler, 1))
    either.fail(sampler, either.op(sampler, 2))
    either.services.submissions.cancel(sampler, 3)
    either.services.dead_letters.bury(sampler, either.op(sampler, 4), "it died")
    either.later(RESULT_TTL_S - 1)
    assert [one.seq for one in either.log(sampler)] == [1, 2, 3, 4, 5]
    assert [one.seq for one in completions.since(either.items, sampler.stream_id, 0, 0)] == [1, 2, 3, 4]
    either.later(2)
    assert [one.seq for one in either.log(sampler)] == [4, 5]  # a dead letter, and one that has not ended
    assert completions.since(either.items, sampler.stream_id, 0, 3)[0].seq == 4
    (letter,) = either.services.dead_letters.list()
    either.services.dead_letters.redrive(letter.letter_id)
    either.complete(sampler, either.op(sampler, 4))
    assert [one.cursor for one in completions.since(either.items, sampler.stream_id, 0, 4)] == [5]
    either.later(RESULT_TTL_S + 1)
    assert [one.seq for one in either.log(sampler)] == [5]


def test_an_operation_whose_kind_was_altered_does_not_open(either: World) -> None:
    run = either.run()
    either.submit(run, 1, kind=OpKind.SAVE)
    either.complete(run, either.submit(run, 2, kind=OpKind.SAVE))
    for seq in (1, 2):
        item = either.items.get(layout.op_item(run.stream_id, seq))
        assert item is not None
        body = {**item.body, "kind": OpKind.SAVE_EXTERNAL.value}
        either.items.write([Put(item.key, body, item.version)])
        with pytest.raises(IntegrityError):
            either.services.outcomes.payload(run, seq)
    with pytest.raises(IntegrityError):
        either.services.outcomes.result(run, either.op(run, 2))


def test_a_run_s_log_does_not_expire(memory: World) -> None:
    run = memory.run()
    memory.complete(run, memory.submit(run, 1))
    memory.fail(run, memory.submit(run, 2))
    memory.services.submissions.reject(run, 3, OpKind.SAVE, NotFound("no"))
    memory.later(10 * RESULT_TTL_S)
    assert [one.seq for one in memory.log(run)] == [0, 1, 2, 3]


def test_what_is_ahead_comes_with_its_payloads_and_ends_at_the_first_that_is_not_there(either: World) -> None:
    run, outcomes = either.run(), either.services.outcomes
    for seq in (1, 2, 4):
        either.submit(run, seq, b"%d" % seq)
    assert outcomes.ahead(run.stream_id, 3, 5) == []
    assert [operation.seq for operation, _ in outcomes.ahead(run.stream_id, 1, 1)] == [1]
    found = outcomes.ahead(run.stream_id, 1, 5)
    assert [operation for operation, _ in found] == [either.op(run, seq) for seq in (1, 2)]
    for operation, _ in found:
        either.items.write([Delete(layout.payload_item(run.stream_id, operation.seq), None)])
    assert [outcomes.payload(run, one.seq, one, stored) for one, stored in found] == [b"1", b"2"]


def test_a_payload_that_a_look_missed_is_read(either: World) -> None:
    """A read of many is not of one moment: the operation may be there, and its payload not yet."""
    run = either.run()
    operation = either.submit(run, 1, b"late")
    assert either.services.outcomes.payload(run, 1, operation, None) == b"late"
