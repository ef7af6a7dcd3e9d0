"""Operations enter the log once, in their place, whatever is repeated, raced, skipped or refused."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tensafe.contracts.errors import Conflict, Gone, InvalidRequest, NotFound, RunBlocked, TensafeError
from tensafe.operations import layout
from tensafe.operations.records import OpKind, OpState, StreamKind
from tensafe.operations.submissions import Submission
from tensafe.operations.window import SEQ_WINDOW
from tests.unit.operations.world import BASE, SAMPLE, TRAIN, World

LARGE = b"x" * 100_000


def test_the_same_submission_again_is_the_same_operation(either: World) -> None:
    run = either.run()
    first = either.submit(run, 1, b"payload")
    again = either.submit(run, 1, b"payload")
    assert (again.seq, again.created_ms, again.fingerprint) == (
        first.seq,
        first.created_ms,
        first.fingerprint,
    )
    assert [op.seq for op in either.log(run)] == [0, 1]
    assert either.services.outcomes.payload(run, 1) == b"payload"


def test_another_payload_at_a_taken_seq_is_a_conflict(either: World) -> None:
    run = either.run()
    either.submit(run, 1, b"payload")
    with pytest.raises(Conflict) as caught:
        either.submit(run, 1, b"another")
    assert caught.value.field == "seq_id"
    with pytest.raises(Conflict):
        either.submit(run, 1, b"payload", kind=OpKind.FORWARD_BACKWARD)
    assert either.services.outcomes.payload(run, 1) == b"payload"


def test_a_repeated_submission_still_finds_its_operation_when_it_has_ended(memory: World) -> None:
    run = memory.run()
    memory.complete(run, memory.submit(run, 1, b"payload"), b"result")
    memory.drain(TRAIN)
    assert memory.submit(run, 1, b"payload").state is OpState.COMPLETED
    assert memory.drain(TRAIN) == []  # nobody is woken for nothing


def test_a_repeated_submission_rings_again_while_the_operation_is_open(memory: World) -> None:
    run = memory.run()
    memory.submit(run, 1)
    memory.drain(TRAIN)
    memory.submit(run, 1)
    assert memory.drain(TRAIN) == [{"stream": run.stream_id}]


def test_an_idempotency_key_finds_its_operation(either: World) -> None:
    run = either.run()
    first = either.append(run, b"payload", key="k1")
    assert either.append(run, b"payload", key="k1").seq == first.seq
    assert either.append(run, b"payload", key="k2").seq == first.seq + 1
    assert len(either.log(run)) == 3


def test_an_idempotency_key_with_another_payload_or_run_is_a_conflict(memory: World) -> None:
    run, other = memory.run("s:train:0"), memory.run("s:train:1")
    memory.append(run, b"payload", key="k")
    with pytest.raises(Conflict):
        memory.append(run, b"another", key="k")
    with pytest.raises(Conflict):
        memory.append(other, b"payload", key="k")
    assert len(memory.log(other)) == 1


def test_an_idempotency_key_of_another_tenant_is_another_key(memory: World) -> None:
    mine, theirs = memory.run("s:train:0", "acme"), memory.run("t:train:0", "rival")
    assert memory.append(mine, b"payload", key="k").stream_id == mine.stream_id
    assert memory.append(theirs, b"payload", key="k").stream_id == theirs.stream_id


def test_an_idempotency_key_is_stored_as_a_digest_and_for_a_day(memory: World) -> None:
    run = memory.run()
    memory.append(run, b"payload", key="order-number-4711")
    (record,) = memory.partition("idem/acme")
    assert "4711" not in f"{record.key}{record.body}"
    memory.later(86_401)
    assert memory.append(run, b"payload", key="order-number-4711").seq == 2


def test_the_same_content_without_a_key_is_two_operations(either: World) -> None:
    run = either.run()
    assert [either.append(run, b"payload").seq, either.append(run, b"payload").seq] == [1, 2]


def test_appending_again_with_a_key_rings_while_the_operation_is_open(memory: World) -> None:
    run = memory.run()
    memory.append(run, b"payload", key="k")
    memory.drain(TRAIN)
    memory.append(run, b"payload", key="k")
    assert memory.drain(TRAIN) == [{"stream": run.stream_id}]


def test_racing_submissions_of_one_seq_make_one_operation(either: World) -> None:
    run = either.run()
    start = threading.Barrier(8)

    def submit(number: int) -> str:
        start.wait()
        try:
            return either.submit(run, 1, b"a" if number % 2 else b"b").fingerprint
        except Conflict:
            return "conflict"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(submit, range(8)))
    winner = either.op(run, 1).fingerprint
    assert sorted(outcomes) == sorted([winner] * 4 + ["conflict"] * 4)
    assert len(either.markers()) == 1


def test_racing_appends_each_get_a_seq_of_their_own(either: World) -> None:
    run = either.run()
    start = threading.Barrier(6)

    def append(number: int) -> list[int]:
        start.wait()
        return [either.append(run, f"{number}/{i}".encode()).seq for i in range(5)]

    with ThreadPoolExecutor(6) as pool:
        seqs = [seq for found in pool.map(append, range(6)) for seq in found]
    assert sorted(seqs) == list(range(1, 31))
    payloads = {either.services.outcomes.payload(run, seq) for seq in range(1, 31)}
    assert len(payloads) == 30


def test_racing_retries_with_one_key_make_one_operation(either: World) -> None:
    run = either.run()
    start = threading.Barrier(6)

    def append(_: int) -> int:
        start.wait()
        return either.append(run, b"payload", key="k").seq

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(append, range(6))) == {1}
    assert [op.seq for op in either.log(run)] == [0, 1]


def test_a_lost_race_leaves_no_blob_behind(memory: World) -> None:
    run = memory.run()
    start = threading.Barrier(6)

    def submit(_: int) -> None:
        start.wait()
        memory.submit(run, 1, LARGE)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(submit, range(6)))
    assert len(memory.blob_keys()) == 1
    assert memory.services.outcomes.payload(run, 1) == LARGE


def test_the_log_is_in_order_of_seq_not_of_arrival(either: World) -> None:
    run = either.run()
    for seq in (11, 2, 10, 1, 9, 100):
        either.later(1)
        either.submit(run, seq)
    assert [op.seq for op in either.log(run)] == [0, 1, 2, 9, 10, 11, 100]
    opened = either.services.outcomes.first_open(run.stream_id)
    assert opened is not None
    assert opened.seq == 1


def test_a_seq_too_far_ahead_is_refused(memory: World) -> None:
    run = memory.run()
    with pytest.raises(InvalidRequest) as caught:
        memory.submit(run, SEQ_WINDOW + 1)
    assert caught.value.field == "seq_id"
    memory.submit(run, SEQ_WINDOW)


def test_the_window_moves_with_what_any_process_wrote(memory: World) -> None:
    run, other = memory.run(), memory.open().submissions
    memory.submit(run, SEQ_WINDOW)
    other.submit(run, Submission(2 * SEQ_WINDOW, OpKind.NOOP, b"{}"))
    with pytest.raises(InvalidRequest):
        memory.submit(run, 3 * SEQ_WINDOW + 1)
    memory.submit(run, 3 * SEQ_WINDOW)


def test_a_stream_that_was_blocked_or_erased_since_it_was_read_takes_nothing(either: World) -> None:
    """The transaction is tried first, and its condition on the stream's record is what refuses."""
    blocked, erased = either.run("s:train:0"), either.run("s:train:1")
    either.services.dead_letters.bury(blocked, either.submit(blocked, 1), "poison")
    either.services.streams.erase(erased.stream_id, erased.tenant)
    with pytest.raises(RunBlocked):
        either.submit(blocked, 2)
    with pytest.raises(Gone):
        either.submit(erased, 1)


@pytest.mark.parametrize("seq", [-1, layout.SEQ_MAX + 1, 2**64])
def test_a_seq_out_of_range_is_refused(memory: World, seq: int) -> None:
    run = memory.run()
    sampler = memory.sampler()
    for stream in (run, sampler):
        with pytest.raises(InvalidRequest):
            memory.submit(stream, seq)


def test_a_sampling_session_takes_any_seq(memory: World) -> None:
    sampler = memory.sampler()
    memory.submit(sampler, 7_000_000_001)
    memory.submit(sampler, 3)
    assert memory.drain(SAMPLE) == [
        {"stream": sampler.stream_id, "seq": 7_000_000_001},
        {"stream": sampler.stream_id, "seq": 3},
    ]


def test_a_refused_submission_leaves_a_tombstone(either: World) -> None:
    run = either.run()
    either.submit(run, 2)
    error = InvalidRequest("data is empty", field="data")
    either.services.submissions.reject(run, 1, OpKind.FORWARD_BACKWARD, error)
    tomb = either.op(run, 1)
    assert tomb.state is OpState.FAILED
    assert tomb.failure is not None
    assert (tomb.failure.code, tomb.failure.field) == ("invalid_request", "data")
    opened = either.services.outcomes.first_open(run.stream_id)
    assert opened is not None
    assert opened.seq == 2
    with pytest.raises(Conflict):
        either.submit(run, 1)


def test_a_tombstone_takes_nobody_s_place(memory: World) -> None:
    run = memory.run()
    memory.submit(run, 1, b"payload")
    memory.services.submissions.reject(run, 1, OpKind.NOOP, InvalidRequest("late"))
    assert memory.op(run, 1).state is OpState.PENDING
    memory.services.submissions.reject(run, SEQ_WINDOW + 5, OpKind.NOOP, InvalidRequest("far"))
    memory.services.submissions.reject(run, -1, OpKind.NOOP, InvalidRequest("negative"))
    assert [op.seq for op in memory.log(run)] == [0, 1]


def test_a_gap_is_closed_up_to_what_arrived(memory: World) -> None:
    run = memory.run()
    memory.submit(run, 200)
    memory.submit(run, 150)
    error = InvalidRequest("seq_id 1 has not arrived")
    assert not memory.services.submissions.close_gap(run, 1, 199, error, [])
    assert {op.seq for op in memory.log(run) if op.state.final} >= set(range(91))
    assert memory.op(run, 150).state is OpState.PENDING
    assert memory.services.submissions.close_gap(run, 151, 199, error, [])
    with pytest.raises(Conflict):
        memory.submit(run, 5)


def test_a_gap_is_closed_by_the_holder_of_the_lease_alone(memory: World) -> None:
    run = memory.run()
    memory.submit(run, 3)
    lost = memory.claim(run, "trainer-a")
    memory.later(31)
    memory.claim(run, "trainer-b")
    assert not memory.services.submissions.close_gap(run, 1, 2, InvalidRequest("late"), [lost.check])
    assert [op.seq for op in memory.log(run)] == [0, 3]


def test_a_pending_operation_is_cancelled(either: World) -> None:
    run = either.run()
    either.submit(run, 1, LARGE)
    cancelled = either.services.submissions.cancel(run, 1)
    assert cancelled.state is OpState.CANCELLED
    stored = either.op(run, 1)
    assert stored.state is OpState.CANCELLED
    assert stored.failure is not None
    assert stored.failure.code == "cancelled"
    assert either.markers() == []
    assert either.services.outcomes.first_open(run.stream_id) is None
    # Nothing will run it: its payload goes at once.
    assert either.blob_keys() == set()
    with pytest.raises(Gone):
        either.services.outcomes.payload(run, 1)


def test_a_running_operation_is_not_cancelled(memory: World) -> None:
    run = memory.run()
    running = memory.services.outcomes.start(memory.submit(run, 1, b"p"), [])
    assert memory.services.submissions.cancel(run, 1).state is OpState.RUNNING
    assert memory.op(run, 1) == running
    assert memory.services.outcomes.payload(run, 1) == b"p"


def test_an_ended_operation_stays_as_it_ended(memory: World) -> None:
    run = memory.run()
    memory.complete(run, memory.submit(run, 1), b"result")
    memory.fail(run, memory.submit(run, 2))
    memory.submit(run, 3)
    memory.services.submissions.cancel(run, 3)
    states = [memory.services.submissions.cancel(run, seq).state for seq in (1, 2, 3)]
    assert states == [OpState.COMPLETED, OpState.FAILED, OpState.CANCELLED]
    with pytest.raises(NotFound):
        memory.services.submissions.cancel(run, 4)


def test_cancel_and_start_race_and_one_wins(either: World) -> None:
    run = either.run()
    for seq in range(1, 11):
        operation = either.submit(run, seq)
        barrier = threading.Barrier(2)

        def start(operation=operation, barrier=barrier) -> bool:
            barrier.wait()
            try:
                either.services.outcomes.start(operation, [])
            except TensafeError:
                return False
            return True

        def cancel(seq=seq, barrier=barrier) -> bool:
            barrier.wait()
            return either.services.submissions.cancel(run, seq).state is OpState.CANCELLED

        with ThreadPoolExecutor(2) as pool:
            started, cancelled = pool.submit(start), pool.submit(cancel)
            assert started.result() != cancelled.result()
        expected = OpState.RUNNING if started.result() else OpState.CANCELLED
        assert either.op(run, seq).state is expected


def test_a_blocked_or_erased_run_takes_nothing(memory: World) -> None:
    run = memory.run()
    memory.services.dead_letters.bury(run, memory.submit(run, 1), "it died")
    with pytest.raises(RunBlocked, match=r"operation 1 \(noop\)"):
        memory.submit(memory.stream(run.stream_id), 2)
    with pytest.raises(RunBlocked):  # the caller's record is an old one
        memory.submit(run, 2)
    memory.services.streams.erase(run.stream_id, "acme")
    with pytest.raises(Gone):
        memory.submit(run, 2)
    memory.services.submissions.reject(run, 2, OpKind.NOOP, InvalidRequest("no"))
    assert memory.log(run) == []


def test_creating_twice_is_creating_once(either: World) -> None:
    streams, submissions = either.services.streams, either.services.submissions
    first, again = (streams.creation("s:train:0", "acme", StreamKind.RUN, BASE) for _ in range(2))
    operation = submissions.create(*first, Submission(0, OpKind.CREATE, b"payload"))
    repeated = submissions.create(*again, Submission(0, OpKind.CREATE, b"payload"))
    assert repeated.fingerprint == operation.fingerprint
    assert len(either.log(either.stream("s:train:0"))) == 1
    with pytest.raises(Conflict):
        submissions.create(*again, Submission(0, OpKind.CREATE, b"another"))


def test_a_run_id_in_use_for_another_base_model_is_a_conflict(memory: World) -> None:
    memory.run("s:train:0")
    other = memory.services.streams.creation("s:train:0", "acme", StreamKind.RUN, "acme/large")
    with pytest.raises(Conflict):
        memory.services.submissions.create(*other, Submission(0, OpKind.NOOP, b"{}"))


def test_a_run_id_of_another_tenant_is_not_found(memory: World) -> None:
    memory.run("s:train:0")
    other = memory.services.streams.creation("s:train:0", "rival", StreamKind.RUN, BASE)
    with pytest.raises(NotFound):
        memory.services.submissions.create(*other, Submission(0, OpKind.NOOP, b"{}"))


def test_racing_creations_make_one_run(either: World) -> None:
    start = threading.Barrier(6)

    def create(_: int) -> str:
        services = either.open()
        creation = services.streams.creation("s:train:0", "acme", StreamKind.RUN, BASE)
        start.wait()
        return services.submissions.create(*creation, Submission(0, OpKind.CREATE, b"payload")).fingerprint

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(create, range(6)))) == 1
    assert len(either.services.streams.list_runs("acme")) == 1


def test_what_a_client_draws_anew_for_each_try_is_no_other_request(memory: World) -> None:
    run = memory.run()

    def submit(payload: bytes, identity: bytes) -> bytes:
        submission = Submission(1, OpKind.SAVE_SAMPLER, payload, identity=identity)
        memory.services.submissions.submit(run, submission)
        return memory.services.outcomes.payload(run, 1)

    assert submit(b"session 0, kept a day", b"kept a day") == b"session 0, kept a day"
    assert submit(b"session 1, kept a day", b"kept a day") == b"session 0, kept a day"
    with pytest.raises(Conflict):
        submit(b"session 2, kept an hour", b"kept an hour")
