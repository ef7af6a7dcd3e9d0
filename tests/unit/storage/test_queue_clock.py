"""What queues do over minutes and hours, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe.storage.ports import VISIBILITY_MAX_S, Message, Queues, QueueSpec, StaleReceipt
from tensafe.storage.sqlite_queues import SqliteQueues
from tests.fakes import MemoryBell, MemoryQueues

SPECS = [QueueSpec("jobs", fifo=True, max_receives=3), QueueSpec("samples", fifo=False)]


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "memory"])
def queues(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Queues]:
    if request.param == "memory":
        yield MemoryQueues(SPECS, clock=clock)
        return
    sqlite = SqliteQueues(tmp_path / "queues.db", SPECS, MemoryBell(), clock=clock)
    yield sqlite
    sqlite.close()


def count(queues: Queues, queue: str) -> int:
    return len(queues.receive(queue, visibility_s=1, max_messages=10))


def test_a_dedup_id_is_remembered_for_five_minutes(queues: Queues, clock: Clock) -> None:
    for queue, group in (("jobs", "g"), ("samples", None)):
        queues.send(queue, {}, group=group, dedup_id="same")
        clock.now_s += 299
        queues.send(queue, {}, group=group, dedup_id="same")
        assert queues.depth(queue) == 1
        clock.now_s += 2
        queues.send(queue, {}, group=group, dedup_id="same")
        assert queues.depth(queue) == 2
        clock.now_s += 299
        queues.send(queue, {}, group=group, dedup_id="same")
        assert queues.depth(queue) == 2


def test_a_dedup_id_belongs_to_one_queue(queues: Queues) -> None:
    queues.send("jobs", {}, group="g", dedup_id="same")
    queues.send("samples", {}, dedup_id="same")
    assert queues.depth("samples") == 1


def test_a_delay_of_a_quarter_of_an_hour(queues: Queues, clock: Clock) -> None:
    queues.send("samples", {}, delay_s=900)
    clock.now_s += 899.9
    assert count(queues, "samples") == 0
    clock.now_s += 0.2
    assert count(queues, "samples") == 1


def test_visibility_ends_on_time(queues: Queues, clock: Clock) -> None:
    queues.send("jobs", {}, group="g")
    (first,) = queues.receive("jobs", visibility_s=30)
    clock.now_s += 29.9
    assert count(queues, "jobs") == 0
    queues.extend("jobs", first.receipt, 30)
    clock.now_s += 29.9
    assert count(queues, "jobs") == 0
    clock.now_s += 0.2
    with pytest.raises(StaleReceipt):
        queues.extend("jobs", first.receipt, 30)
    assert count(queues, "jobs") == 1


def test_work_done_late_may_still_be_deleted_if_nobody_took_it(queues: Queues, clock: Clock) -> None:
    queues.send("jobs", {}, group="g")
    (message,) = queues.receive("jobs", visibility_s=30)
    clock.now_s += 31
    queues.delete("jobs", message.receipt)
    assert queues.depth("jobs") == 0


def test_nobody_holds_a_message_for_more_than_twelve_hours(queues: Queues, clock: Clock) -> None:
    queues.send("jobs", {}, group="g")
    (message,) = queues.receive("jobs", visibility_s=3600)
    begin = clock.now_s
    while clock.now_s < begin + VISIBILITY_MAX_S - 1800:
        queues.extend("jobs", message.receipt, 3600)
        clock.now_s += 1800
    queues.extend("jobs", message.receipt, 3600)
    clock.now_s = begin + VISIBILITY_MAX_S - 1
    assert count(queues, "jobs") == 0
    queues.extend("jobs", message.receipt, 3600)
    clock.now_s = begin + VISIBILITY_MAX_S + 1
    with pytest.raises(StaleReceipt):
        queues.extend("jobs", message.receipt, 3600)
    (again,) = queues.receive("jobs", visibility_s=3600)
    assert again.receives == 2
    clock.now_s += 1
    queues.extend("jobs", again.receipt, 3600)


def test_many_dead_at_the_heads_of_groups_hide_nothing_behind_them(queues: Queues) -> None:
    for n in range(15):
        queues.send("jobs", {"n": n}, group=f"g{n}")
        queues.send("jobs", {"n": 100 + n}, group=f"g{n}")
    for _ in range(3):
        held = [message for _ in range(2) for message in take_ten(queues)]
        assert sorted(cast(int, message.body["n"]) for message in held) == list(range(15))
        for message in held:
            queues.extend("jobs", message.receipt, 0)
    alive = [message for _ in range(2) for message in take_ten(queues)]
    assert sorted(cast(int, message.body["n"]) for message in alive) == list(range(100, 115))
    assert (queues.depth("jobs"), queues.depth("jobs-dead")) == (15, 15)


def take_ten(queues: Queues) -> list[Message]:
    return queues.receive("jobs", visibility_s=60, max_messages=10)


@pytest.mark.parametrize(
    "specs",
    [
        [QueueSpec("a", fifo=True), QueueSpec("a", fifo=False)],
        [QueueSpec("a", fifo=True), QueueSpec("a-dead", fifo=False)],
        [QueueSpec("", fifo=True)],
        [QueueSpec("with space", fifo=True)],
        [QueueSpec("a.fifo", fifo=True)],
        [QueueSpec("x" * 71, fifo=True)],
        [QueueSpec("a", fifo=True, max_receives=0)],
    ],
)
def test_declarations_that_are_refused(tmp_path: Path, specs: list[QueueSpec]) -> None:
    with pytest.raises(ConfigurationError):
        MemoryQueues(specs)
    with pytest.raises(ConfigurationError):
        SqliteQueues(tmp_path / "queues.db", specs, MemoryBell())
