"""The cursor of a sampling session's completions: every end is seen once, none is skipped."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.operations import completions
from tensafe.operations.completions import CLONE_STRIDE
from tensafe.operations.records import OpState, Result
from tensafe.storage.ports import TRANSACTION_MAX_WRITES, ConditionFailed
from tests.fakes import MemoryItems
from tests.unit.operations.world import World

COUNT = 40


def test_ends_are_listed_in_the_order_of_ending(either: World) -> None:
    sampler = either.sampler()
    for seq in (1, 2, 3):
        either.submit(sampler, seq)
    either.complete(sampler, either.op(sampler, 3))
    either.fail(sampler, either.op(sampler, 1))
    either.services.submissions.cancel(sampler, 2)
    found = completions.since(either.items, sampler.stream_id, 0, 0)
    assert [(one.cursor, one.seq) for one in found] == [(1, 3), (2, 1), (3, 2)]
    assert completions.since(either.items, sampler.stream_id, 0, 2) == found[2:]
    assert completions.since(either.items, sampler.stream_id, 0, 3) == []


def test_each_clone_has_a_cursor_of_its_own(memory: World) -> None:
    sampler = memory.sampler()
    for seq in (5, CLONE_STRIDE + 5, 2 * CLONE_STRIDE - 1):
        memory.complete(sampler, memory.submit(sampler, seq))
    seqs = [
        [one.seq for one in completions.since(memory.items, sampler.stream_id, clone, 0)]
        for clone in (0, 1, 2)
    ]
    assert seqs == [[5], [CLONE_STRIDE + 5, 2 * CLONE_STRIDE - 1], []]


def test_a_reader_that_follows_the_cursor_misses_nothing(either: World) -> None:
    """Writers end operations at the same time as a reader polls from the last cursor it saw."""
    sampler = either.sampler()
    operations = [either.submit(sampler, seq) for seq in range(1, COUNT + 1)]
    done, seen = threading.Event(), list[int]()

    def follow() -> None:
        cursor = 0
        while len(seen) < COUNT:
            last_look = done.is_set()
            found = completions.since(either.items, sampler.stream_id, 0, cursor, limit=7)
            for one in found:
                assert one.cursor == cursor + 1
                cursor = one.cursor
                seen.append(one.seq)
            if last_look and not found:
                return
            time.sleep(0.002)

    def close(number: int) -> None:
        for operation in operations[number::4]:
            either.complete(sampler, operation)

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(follow)
        list(pool.map(close, range(4)))
        done.set()
        reader.result()
    assert sorted(seen) == list(range(1, COUNT + 1))


def test_an_operation_that_ended_meanwhile_adds_no_completion(memory: World) -> None:
    sampler = memory.sampler()
    operation = memory.submit(sampler, 1)
    running = memory.services.outcomes.start(operation, [])
    memory.services.outcomes.complete(sampler, running, Result("text/plain", b"first"))
    with pytest.raises(ConditionFailed) as caught:
        memory.services.outcomes.complete(sampler, running, Result("text/plain", b"x" * 100_000))
    assert caught.value.index == 0
    assert memory.blob_keys() == set()
    assert memory.services.outcomes.result(sampler, memory.op(sampler, 1)).data == b"first"
    assert len(completions.since(memory.items, sampler.stream_id, 0, 0)) == 1


class _Busy:
    """Somebody else's completion comes first until `busy_s` have been waited."""

    def __init__(self, inner: MemoryItems, busy_s: float) -> None:
        self.inner = inner
        self.busy_s = busy_s
        self.waits: list[float] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def write(self, writes) -> None:
        if len(writes) > 1 and sum(self.waits) < self.busy_s:
            raise ConditionFailed("the counter moved", index=0)
        self.inner.write(writes)


def test_a_busy_moment_is_waited_out_with_pauses_that_grow_and_differ(
    memory: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = memory.sampler()
    operations = [memory.submit(sampler, seq) for seq in (1, 2)]
    waits = []
    for operation in operations:
        running = memory.services.outcomes.start(operation, [])
        busy = _Busy(memory.items, busy_s=1.0)
        monkeypatch.setattr(completions.time, "sleep", busy.waits.append)
        memory.open(items=busy).outcomes.complete(sampler, running, Result("text/plain", b""))
        waits.append(busy.waits)
    assert [memory.op(sampler, seq).state for seq in (1, 2)] == [OpState.COMPLETED] * 2
    assert waits[0] != waits[1]
    for one in waits:
        assert max(one[:3]) < 0.01
        assert max(one) <= 0.25


def test_never_being_next_is_not_mistaken_for_an_end(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that finds no place in the order is given back, and its operation stays open."""
    sampler = memory.sampler()
    running = memory.services.outcomes.start(memory.submit(sampler, 1), [])

    class AlwaysLate:
        """Somebody else's completion always comes first."""

        def __getattr__(self, name: str) -> object:
            return getattr(memory.items, name)

        def write(self, writes) -> None:
            if len(writes) > 1:
                raise ConditionFailed("the counter moved", index=0)
            memory.items.write(writes)

    monkeypatch.setattr(completions.time, "sleep", lambda _: None)
    with pytest.raises(Unavailable):
        memory.open(items=AlwaysLate()).outcomes.complete(
            sampler, running, Result("text/plain", b"x" * 100_000)
        )
    assert memory.op(sampler, 1).state is OpState.RUNNING
    assert memory.blob_keys() == set()


class _Slow:
    """Holds the first transaction of several writes until it is let go, and counts them all."""

    def __init__(self, inner: MemoryItems) -> None:
        self.inner = inner
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.transactions = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def write(self, writes) -> None:
        self.transactions += 1
        if self.transactions == 1:
            self.entered.set()
            assert self.go_on.wait(10)
        self.inner.write(writes)


def _end_at_once(memory: World, slow: _Slow, count: int, spoil) -> list[BaseException | None]:
    """Ends `count` + 1 operations, all but the first waiting for the same turn; what each of them raised."""
    sampler = memory.sampler()
    running = [
        memory.services.outcomes.start(memory.submit(sampler, seq), [], owner="me")
        for seq in range(1, count + 2)
    ]
    spoil(sampler)
    outcomes = memory.open(items=slow).outcomes
    with ThreadPoolExecutor(count + 1) as pool:
        first = pool.submit(outcomes.complete, sampler, running[0], Result("text/plain", b"1"))
        assert slow.entered.wait(10)
        others = [
            pool.submit(outcomes.complete, sampler, operation, Result("text/plain", b"2"))
            for operation in running[1:]
        ]
        waiting = outcomes._closing._completions._waiting
        deadline = time.monotonic() + 10
        while len(waiting) < count and time.monotonic() < deadline:
            time.sleep(0.001)
        slow.go_on.set()
        return [future.exception() for future in (first, *others)]


def test_those_that_end_at_the_same_time_share_a_transaction(memory: World) -> None:
    slow = _Slow(memory.items)
    assert _end_at_once(memory, slow, 12, lambda sampler: None) == [None] * 13
    assert slow.transactions == 2
    sampler = memory.stream("s-1:sample:0")
    found = completions.since(memory.items, sampler.stream_id, 0, 0)
    assert [one.cursor for one in found] == list(range(1, 14))
    assert sorted(one.seq for one in found) == list(range(1, 14))


def test_one_that_cannot_end_does_not_take_the_others_with_it(memory: World) -> None:
    """The third was cancelled meanwhile; the rest of its transaction goes through, with no gap."""
    slow = _Slow(memory.items)
    errors = _end_at_once(memory, slow, 5, lambda sampler: memory.services.submissions.cancel(sampler, 3))
    assert [type(error) for error in errors] == [type(None)] * 2 + [ConditionFailed] + [type(None)] * 3
    assert isinstance(errors[2], ConditionFailed)
    assert errors[2].index == 0
    sampler = memory.stream("s-1:sample:0")
    found = completions.since(memory.items, sampler.stream_id, 0, 0)
    assert [one.cursor for one in found] == list(range(1, 7))
    assert found[0].seq == 3
    assert memory.op(sampler, 3).state is OpState.CANCELLED


def test_more_than_a_transaction_holds_end_in_several(memory: World) -> None:
    slow = _Slow(memory.items)
    count = 2 * TRANSACTION_MAX_WRITES // 5
    assert _end_at_once(memory, slow, count, lambda sampler: None) == [None] * (count + 1)
    assert 2 < slow.transactions < count // 2
    sampler = memory.stream("s-1:sample:0")
    assert len(completions.since(memory.items, sampler.stream_id, 0, 0)) == count + 1


def test_too_many_bytes_for_one_transaction_end_one_by_one(
    memory: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensafe.storage.checks.TRANSACTION_MAX_BYTES", 4000)
    slow = _Slow(memory.items)
    assert _end_at_once(memory, slow, 8, lambda sampler: None) == [None] * 9
    assert len(completions.since(memory.items, "s-1:sample:0", 0, 0)) == 9
