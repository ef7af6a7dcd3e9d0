"""The queues port on its adapters, and what only the embedded one promises."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from tensafe.storage.ports import Queues, StaleReceipt
from tensafe.storage.sqlite_queues import SqliteQueues
from tensafe.storage.unix_bell import UnixBell
from tests.contract.processes import Child
from tests.contract.queues_suite import FIFO, LONG_S, SPECS, STANDARD, QueuesSuite, take
from tests.fakes import MemoryQueues


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[UnixBell]:
    bell = UnixBell(tmp_path / "bells")
    yield bell
    bell.close()


@pytest.fixture
def sqlite_queues(tmp_path: Path, bell: UnixBell) -> Iterator[SqliteQueues]:
    queues = SqliteQueues(tmp_path / "queues.db", SPECS, bell)
    yield queues
    queues.close()


class BeyondThePort:
    """What one machine can promise and SQS cannot; nothing may rely on it that is to run on both."""

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_a_receipt_that_was_overtaken_is_stale(self, queues: Queues, queue: str) -> None:
        queues.send(queue, {"n": 1}, group="g" if queue == FIFO else None)
        old = take(queues, queue, visibility_s=0.15)
        new = take(queues, queue)
        with pytest.raises(StaleReceipt):
            queues.extend(queue, old.receipt, LONG_S)
        queues.extend(queue, new.receipt, LONG_S)

    @pytest.mark.parametrize("queue", [FIFO, STANDARD])
    def test_deleting_what_has_passed_on_leaves_it(self, queues: Queues, queue: str) -> None:
        queues.send(queue, {"n": 1}, group="g" if queue == FIFO else None)
        old = take(queues, queue, visibility_s=0.15)
        new = take(queues, queue)
        queues.delete(queue, old.receipt)
        assert queues.depth(queue) == 1
        queues.delete(queue, new.receipt)
        assert queues.depth(queue) == 0

    def test_a_dedup_id_is_dropped_in_another_group_too(self, queues: Queues) -> None:
        queues.send(FIFO, {"n": 1}, group="g", dedup_id="same")
        queues.send(FIFO, {"n": 2}, group="h", dedup_id="same")
        assert queues.depth(FIFO) == 1


class TestSqliteQueues(BeyondThePort, QueuesSuite):
    @pytest.fixture
    def queues(self, sqlite_queues: SqliteQueues) -> Queues:
        return sqlite_queues


class TestMemoryQueues(BeyondThePort, QueuesSuite):
    @pytest.fixture
    def queues(self) -> Queues:
        return MemoryQueues(SPECS)


class TestAcrossProcesses:
    def test_queue_01_acknowledged_sends_survive_sigkill(
        self, tmp_path: Path, sqlite_queues: SqliteQueues, child: Callable[..., Child]
    ) -> None:
        acknowledged: list[int] = []
        for life, kill_after in enumerate((31, 2, 50)):
            sender = child("send_messages", tmp_path, life * 1_000_000)
            acknowledged += [int(sender.line()) for _ in range(kill_after)]
            acknowledged += [int(line) for line in sender.kill()]
        seen: dict[str | None, list[int]] = {}
        while batch := sqlite_queues.receive(FIFO, visibility_s=LONG_S, max_messages=10):
            for message in batch:
                seen.setdefault(message.group, []).append(cast(int, message.body["n"]))
                sqlite_queues.delete(FIFO, message.receipt)
        numbers = [n for group in seen.values() for n in group]
        assert set(acknowledged) <= set(numbers)
        assert len(numbers) == len(set(numbers)) <= len(acknowledged) + 3
        assert all(group == sorted(group) for group in seen.values())

    def test_queue_01_work_of_a_killed_worker_comes_again(
        self, tmp_path: Path, sqlite_queues: SqliteQueues, child: Callable[..., Child]
    ) -> None:
        for n in range(60):
            sqlite_queues.send(STANDARD, {"n": n})
        worker = child("work_messages", tmp_path)
        deleted = [int(worker.line()) for _ in range(20)]
        deleted += [int(line) for line in worker.kill()]
        rest = []
        while batch := sqlite_queues.receive(STANDARD, visibility_s=LONG_S, max_messages=10, wait_s=0.5):
            rest += [message.body["n"] for message in batch]
        assert set(deleted).isdisjoint(rest)
        assert len(set(deleted)) + len(rest) in (59, 60)  # one delete may have been done and not yet said
        assert sqlite_queues.depth(f"{STANDARD}-dead") == 0

    def test_a_send_wakes_another_process_at_once(
        self, tmp_path: Path, sqlite_queues: SqliteQueues, child: Callable[..., Child]
    ) -> None:
        waiter = child("wait_for_message", tmp_path, STANDARD)
        delays_ms = []
        for n in range(10):
            time.sleep(0.05)
            sent = time.monotonic()
            sqlite_queues.send(STANDARD, {"n": n})
            delays_ms.append((float(waiter.line()) - sent) * 1000)
        assert sorted(delays_ms)[5] < 100, f"send to receive took {delays_ms} ms"
