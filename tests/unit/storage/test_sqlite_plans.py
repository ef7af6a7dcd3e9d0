"""Every query reads through an index, and a receive stays short behind 10,000 messages."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.storage import sqlite_items, sqlite_queues
from tensafe.storage.ports import QueueSpec
from tensafe.storage.sqlite_queues import SqliteQueues
from tests.fakes import MemoryBell


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    for schema in (sqlite_items.SCHEMA, sqlite_queues.SCHEMA):
        for statement in schema.statements:
            connection.execute(statement)
    yield connection
    connection.close()


def plan(connection: sqlite3.Connection, sql: str) -> list[str]:
    names = ("partition", "sort", "first", "last", "limit", "now")
    values = dict.fromkeys(names, 1) if ":" in sql else (1,) * sql.count("?")
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]


READY = "SEARCH messages USING INDEX messages_ready (queue=? AND ready_at_ms<?)"


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (sqlite_queues.SELECT_READY, [READY]),
        (
            sqlite_queues.SELECT_NEXT_READY,
            ["SEARCH messages USING COVERING INDEX messages_ready (queue=? AND ready_at_ms>?)"],
        ),
        (
            sqlite_queues.GROUP_HAS_MESSAGES,
            ["SEARCH messages USING COVERING INDEX messages_group (queue=? AND group_id=?)"],
        ),
        (
            sqlite_queues.PROMOTE_NEXT,
            [
                "SEARCH messages USING INTEGER PRIMARY KEY (rowid=?)",
                "SCALAR SUBQUERY 1",
                "SEARCH messages USING COVERING INDEX messages_group (queue=? AND group_id=?)",
            ],
        ),
        (
            sqlite_queues.COUNT,
            ["SEARCH messages USING COVERING INDEX messages_group (queue=?)"],
        ),
        (sqlite_items.GET, ["SEARCH items USING PRIMARY KEY (partition=? AND sort=?)"]),
        (
            sqlite_items.QUERY_ASCENDING,
            ["SEARCH items USING PRIMARY KEY (partition=? AND sort>? AND sort<?)"],
        ),
        (
            sqlite_items.QUERY_DESCENDING,
            ["SEARCH items USING PRIMARY KEY (partition=? AND sort>? AND sort<?)"],
        ),
    ],
)
def test_queries_use_their_index(connection: sqlite3.Connection, sql: str, expected: list[str]) -> None:
    assert plan(connection, sql) == expected


@pytest.mark.parametrize("sql", [sqlite_items.PURGE, sqlite_queues.FORGET_OLD])
def test_housekeeping_scans_no_table(connection: sqlite3.Connection, sql: str) -> None:
    steps = plan(connection, sql)
    assert steps
    assert not any(step.startswith("SCAN") or "TEMP B-TREE" in step for step in steps), steps


@pytest.mark.parametrize("fifo", [True, False])
def test_receive_and_delete_behind_ten_thousand_messages(tmp_path: Path, fifo: bool) -> None:
    queues = SqliteQueues(tmp_path / "queues.db", [QueueSpec("jobs", fifo=fifo)], MemoryBell())
    with queues._database.writing() as connection:
        for n in range(10_000):
            group = f"g{n % 2500}" if fifo else None
            sqlite_queues._append(connection, "jobs", group, "{}", 1)
    assert queues.depth("jobs") == 10_000
    begin = time.perf_counter()
    for _ in range(50):
        (message,) = queues.receive("jobs", visibility_s=60)
        queues.delete("jobs", message.receipt)
    each_ms = (time.perf_counter() - begin) / 50 * 1000
    assert queues.depth("jobs") == 9_950
    assert each_ms < 50, f"{each_ms:.1f} ms for one receive and delete"
    queues.close()
