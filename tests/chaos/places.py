"""Copies of a data directory in which processes live and die, with the items in SQLite or in DynamoDB."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from tensafe.local.composition import ITEMS
from tensafe.local.recovery import reclaim
from tensafe.operations.doorbell import train_queue
from tensafe.services import Services
from tensafe.storage.checks import check_writes
from tensafe.storage.dynamodb_items import DynamoDbItems, _attributes
from tensafe.storage.ports import Item, Key, Put
from tests.chaos.forking import KILLED, Server
from tests.chaos.script import BASE, close, copied, open_folder, rewired
from tests.contract.emulators import create_table, shared_client
from tests.contract.moto_process import moto_process

AWS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")


@dataclass
class Place:
    """A data directory, its items there or in a table of their own, and who lives there."""

    services: Services
    server: Server
    folder: Path

    def die(self, role: str, stage: str) -> None:
        """A process of this role that ends at a stage; what it held is given back."""
        assert self.server.run(role, self.folder, "trainer-0", stage)["status"] == KILLED, (role, stage)
        reclaim(self.services, "trainer-0", train_queue(BASE), counted=True)

    def live(self, role: str) -> None:
        """A process of this role that does all its work."""
        answer = self.server.run(role, self.folder, "trainer-z")
        assert answer["status"] == 0, (role, answer)


Places = Callable[[Path], AbstractContextManager[Place]]
"""Makes places that begin as a data directory that nobody has open."""


@contextmanager
def places(adapter: str, space: Path, server: Server) -> Iterator[Places]:
    """Places over "sqlite", or over "dynamodb" in a moto of their own."""
    if adapter == "sqlite":
        yield _over_sqlite(space, server)
        return
    with moto_process():
        shared_client.cache_clear()  # the client of other tests knows another endpoint
        yield _over_dynamodb(shared_client("dynamodb"), space, server)
    shared_client.cache_clear()


def _over_sqlite(space: Path, server: Server) -> Places:
    @contextmanager
    def new(source: Path) -> Iterator[Place]:
        folder = copied(source, space / "place")
        services = open_folder(folder)
        yield Place(services, server, folder)
        close(services)
        shutil.rmtree(folder)

    return new


def _over_dynamodb(client: Any, space: Path, server: Server) -> Places:
    numbers = count()

    @contextmanager
    def new(source: Path) -> Iterator[Place]:
        table = f"items-{next(numbers)}"
        create_table(table, client)
        _fill(client, table, _items(source))
        folder = copied(source, space / table)
        opened = open_folder(folder)
        more = {"table": table, "environment": {name: os.environ[name] for name in AWS}}
        ports = replace(opened.ports, items=DynamoDbItems(client, table))
        yield Place(rewired(opened, ports), replace(server, more=more), folder)
        close(opened)
        shutil.rmtree(folder)

    return new


def _items(folder: Path) -> list[Item]:
    """All that is stored in a data directory that nobody has open."""
    with closing(sqlite3.connect(folder / ITEMS)) as file:
        keys = [Key(*row) for row in file.execute("SELECT partition, sort FROM items")]
    services = open_folder(folder)
    found = [services.ports.items.get(key) for key in keys]
    close(services)
    return [item for item in found if item is not None]


def _fill(client: Any, table: str, items: Sequence[Item]) -> None:
    """Put the items into the table as they are, at their versions."""
    for item in items:
        put = Put(item.key, item.body, item.version - 1, sealed=item.sealed, expires_at_s=item.expires_at_s)
        ((_, text),) = check_writes([put])
        client.put_item(TableName=table, Item=_attributes(put, text))
