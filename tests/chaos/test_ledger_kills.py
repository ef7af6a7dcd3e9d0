"""A trainer is killed with SIGKILL at each stage of a private step, with the ledger in DynamoDB."""

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

import pytest

from tensafe.local.composition import ITEMS
from tensafe.local.recovery import reclaim
from tensafe.operations.doorbell import train_queue
from tensafe.services import Services
from tensafe.storage.checks import check_writes
from tensafe.storage.dynamodb_items import DynamoDbItems, _attributes
from tensafe.storage.ports import Item, Key, Put
from tests.chaos.forking import KILLED, Server
from tests.chaos.script import (
    BASE,
    Outcome,
    close,
    copied,
    look_again,
    open_folder,
    outcome,
    rewired,
    unnamed_blobs,
)
from tests.contract.emulators import create_table, shared_client
from tests.contract.moto_process import moto_process
from tests.support.killing_ports import STAGES

AWS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
STEP = 5
"""Which of the eight private steps of the script's runs is the trainer's last."""


@dataclass
class Place:
    """A data directory whose items are in a table of their own, and who trains there."""

    services: Services
    server: Server
    folder: Path

    def train(self, stage: str | None = None) -> Outcome:
        """A trainer that ends at a stage, if any, and then one that lives."""
        if stage is not None:
            assert self.server.run("train", self.folder, "trainer-0", stage)["status"] == KILLED, stage
            reclaim(self.services, "trainer-0", train_queue(BASE), counted=True)
        look_again(self.services)
        answer = self.server.run("train", self.folder, "trainer-z")
        assert answer["status"] == 0, (stage, answer)
        assert unnamed_blobs(self.services, self.folder) == 0, stage
        return outcome(self.services)


NewPlace = Callable[[], AbstractContextManager[Place]]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with moto_process():
        shared_client.cache_clear()  # the client of other tests knows another endpoint
        yield shared_client("dynamodb")
    shared_client.cache_clear()


@pytest.fixture(scope="module")
def new_place(client: Any, space: Path, submitted: Path, server: Server) -> NewPlace:
    """Makes places in which everything is submitted and nothing is done."""
    present, numbers = _items(submitted), count()

    @contextmanager
    def new() -> Iterator[Place]:
        table = f"items-{next(numbers)}"
        create_table(table)
        _fill(client, table, present)
        folder = copied(submitted, space / table)
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


@pytest.fixture(scope="module")
def unharmed(new_place: NewPlace) -> Outcome:
    with new_place() as place:
        return place.train()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES)
def test_state_01_a_trainer_killed_at_a_stage_of_a_private_step_charges_it_once_and_draws_the_same_noise(
    new_place: NewPlace, unharmed: Outcome, stage: str
) -> None:
    """The same weights, results and epsilon as without the kill."""
    with new_place() as place:
        assert place.train(f"{stage}:{STEP}") == unharmed
