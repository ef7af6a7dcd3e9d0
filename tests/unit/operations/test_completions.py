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
from tensafe.storage.ports import ConditionFailed
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
