"""The items port on its adapters, and what only the embedded one promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensafe.storage.ports import Items, Key
from tensafe.storage.sqlite_items import SqliteItems
from tests.contract.items_suite import ItemsSuite
from tests.contract.processes import Child
from tests.fakes import MemoryItems


class TestSqliteItems(ItemsSuite):
    @pytest.fixture
    def items(self, tmp_path: Path) -> Iterator[Items]:
        items = SqliteItems(tmp_path / "items.db")
        yield items
        items.close()


class TestMemoryItems(ItemsSuite):
    @pytest.fixture
    def items(self) -> Items:
        return MemoryItems()


class TestAcrossProcesses:
    def test_state_01_acknowledged_writes_survive_sigkill(
        self, tmp_path: Path, child: Callable[..., Child]
    ) -> None:
        acknowledged: list[int] = []
        for life, kill_after in enumerate((1, 57, 23)):
            writer = child("write_items", tmp_path, life * 1_000_000)
            seen = [int(writer.line()) for _ in range(kill_after)]
            acknowledged += seen + [int(line) for line in writer.kill()]
        items = SqliteItems(tmp_path / "items.db")
        left, right = (items.query(side, limit=100_000) for side in ("left", "right"))
        present = [int(item.key.sort) for item in left]
        assert set(acknowledged) <= set(present)
        assert len(present) <= len(acknowledged) + 3  # one write of each child may have been on its way
        assert [(i.key.sort, i.body) for i in left] == [(i.key.sort, i.body) for i in right]
        items.close()

    def test_two_processes_never_lose_an_update(self, tmp_path: Path, child: Callable[..., Child]) -> None:
        counters = [child("count_up", tmp_path, 100) for _ in range(2)]
        for counter in counters:
            counter.tell()
        lost = [int(counter.line()) for counter in counters]
        items = SqliteItems(tmp_path / "items.db")
        item = items.get(Key("shared", "counter"))
        assert item is not None
        assert (item.body, item.version) == ({"n": 200}, 200)
        assert all(0 <= one <= 2000 for one in lost)
        items.close()

    def test_writers_do_not_starve_each_other(self, tmp_path: Path, child: Callable[..., Child]) -> None:
        writers = [child("hammer_items", tmp_path, f"writer-{n}", 1.0) for n in range(3)]
        for writer in writers:
            writer.tell()
        results = [writer.line().split() for writer in writers]
        counts = [int(count) for count, _ in results]
        longest_ms = [float(longest) for _, longest in results]
        assert min(counts) > max(counts) / 2, f"writes {counts}"
        assert max(longest_ms) < 750, f"longest waits {longest_ms} ms"
