"""Limits of a tenant hold exactly across processes, on SQLite and on DynamoDB (moto and ministack)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import pytest

from tensafe.storage.aws_clients import aws_client
from tensafe.storage.dynamodb_items import DynamoDbItems
from tensafe.storage.ports import Items, Key
from tensafe.storage.sqlite_items import SqliteItems
from tests.contract.emulators import aws_at, create_table, moto_on_loopback
from tests.contract.processes import Child
from tests.support.ministack import ON_EMULATOR

PROCESSES = 4
Where = tuple[str, Items]


@pytest.fixture(params=["sqlite", "moto", ON_EMULATOR])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Where]:
    if request.param == "sqlite":
        items = SqliteItems(tmp_path / "items.db")
        yield str(tmp_path), items
        items.close()
        return
    if request.param == "moto":
        there: AbstractContextManager[object] = moto_on_loopback()
    else:
        there = aws_at(request.getfixturevalue("emulator").endpoint_url)
    table = f"limits-{uuid4().hex}"
    with there:
        client = create_table(table, aws_client("dynamodb"))
        yield f"table:{table}", DynamoDbItems(client, table)
        client.delete_table(TableName=table)


def of_all(children: list[Child]) -> list[int]:
    for one in children:
        one.tell()
    return [int(one.line()) for one in children]


def test_a_window_grants_its_limit_and_not_one_more(where: Where, child: Callable[..., Child]) -> None:
    place, items = where
    now_ms = time.time_ns() // 1_000_000
    taken = of_all([child("take_units", place, now_ms, 400, 0) for _ in range(PROCESSES)])
    assert sum(taken) == 400, taken
    # What a process has left of one unit may be too little of the other.
    with_bytes = of_all([child("take_units", place, now_ms + 10_000, 400, 7) for _ in range(2)])
    assert 390 <= sum(with_bytes) <= 400, with_bytes
    item = items.get(Key("tenant/acme/limits", "window"))
    assert item is not None
    assert item.version < 200  # writes; one for each operation would be 800


def test_no_more_things_exist_than_may(where: Where, child: Callable[..., Child]) -> None:
    place, items = where
    now_ms = time.time_ns() // 1_000_000
    made = of_all([child("multiply", place, now_ms, 60, 16) for _ in range(PROCESSES)])
    assert sum(made) == 60, made
    assert len(items.query("things", limit=1000)) == 60
    assert of_all([child("multiply", place, now_ms + 60_000, 60, 16)]) == [0]
    assert of_all([child("multiply", place, now_ms + 120_000, 70, 1)]) == [10]


def test_no_more_wait_than_may(where: Where, child: Callable[..., Child]) -> None:
    """A refusal because others write at the same moment may leave places; then they are asked for again."""
    place, items = where
    taken = of_all([child("take_places", place, 25) for _ in range(PROCESSES)])
    assert sum(taken) == 25, taken
    item = items.get(Key("tenant/acme/limits", "waits"))
    assert item is not None
    assert len(dict(item.body["places"])) == 25  # type: ignore[call-overload]
