"""A ledger as a trainer's process has it, over SQLite or over DynamoDB, and runs that spend its budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import BudgetExceeded
from tensafe.local.composition import local_services
from tensafe.local.settings import LocalSettings
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.noise import noise_key_id
from tensafe.privacy.records import RunRef
from tensafe.privacy.replay import replay
from tensafe.privacy.statements import DomainStatement
from tensafe.storage.ports import Items
from tensafe.vault.vault import Vault

SQLITE: Final = "-"
"""In place of a table's name: the items are in the data directory."""
TENANT: Final = "acme"
ROOM: Final = {"one": (1.0, 5.0, 1), "twelve": (5.0, 3.0, 12)}
"""By the first word of a domain's name: noise multiplier, budget, and how many steps of one unit that bears
(sigma 1: 4.377 once, 6.573 twice)."""


@contextmanager
def ledger_over(folder: Path, table: str) -> Iterator[tuple[Ledger, Vault]]:
    """Keys, signatures and anchors from a data directory; the items from there or from a table."""
    with local_services(LocalSettings(data_dir=folder)) as services:
        items: Items = services.ports.items
        if table != SQLITE:
            from tensafe.storage.aws_clients import aws_client  # takes long to import
            from tensafe.storage.dynamodb_items import DynamoDbItems

            items = DynamoDbItems(aws_client("dynamodb"), table)
        vault = Vault(items, services.ports.blobs, services.ports.keyring)
        yield Ledger(items, vault, services.ports.signer, services.ports.anchors), vault


def open_spender(ledger: Ledger, domain: str, run_id: str) -> RunRef:
    """A run that would take 100 steps, in a domain that bears a few."""
    noise_multiplier, max_epsilon, _ = ROOM[domain.partition("-")[0]]
    mechanism = Mechanism(
        clip_norm=1.0,
        noise_multiplier=noise_multiplier,
        batch_size=8,
        max_participations=100,
        delta=1e-5,
        domain=domain,
        max_epsilon=max_epsilon,
    )
    secret = f"{domain}/{run_id}".encode().ljust(32, b"\0")
    return ledger.open_run(TENANT, run_id, mechanism, noise_key_id=noise_key_id(secret))


def spend_all(ledger: Ledger, run: RunRef) -> int:
    """Charge steps until the budget refuses; how many there were."""
    for step in count():
        try:
            ledger.reserve(run, step, {1})
        except BudgetExceeded:
            return step
    raise AssertionError


def spent(folder: Path, table: str, domain: str) -> DomainStatement:
    """What the domain's head says, once its rows say the same."""
    with ledger_over(folder, table) as (ledger, vault):
        statement = ledger.show(TENANT, domain)
        assert replay(ledger._items, vault, TENANT, domain) == statement
        return statement
