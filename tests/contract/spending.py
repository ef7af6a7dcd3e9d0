"""Ledgers as a trainer's process has them, over SQLite or over DynamoDB, and runs that spend a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import BudgetExceeded
from tensafe.contracts.training import DpAdamWConfig
from tensafe.local.composition import local_services
from tensafe.local.settings import LocalSettings
from tensafe.privacy.amplified import Spent
from tensafe.privacy.dealt_ledger import DealtLedger
from tensafe.privacy.dealt_mechanism import resolve_dealt
from tensafe.privacy.domains import Domains
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
UNITS: Final = 24
DELTA: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Room:
    """What runs of a domain want, and how often its budget bears it: steps of one unit, or whole dealt runs.

    `deals`: of each dealt run; 0 for bounded runs. `beside`: run-0 is dealt and run-1 bounded, so how much
    fits depends on who comes first.
    """

    noise_multiplier: float
    max_epsilon: float
    bears: int
    deals: int = 0
    beside: bool = False


ROOM: Final = {
    "one": Room(1.0, 5.0, 1),
    "twelve": Room(5.0, 3.0, 12),
    "opening": Room(1.0, 5.0, 1, deals=4),
    "openings": Room(1.0, 7.0, 3, deals=4),
    "beside": Room(1.0, 7.0, 3, deals=4, beside=True),
}
"""By the first word of a domain's name. Epsilon at sigma 1: one bounded step 4.377, two 6.573; one dealt run
4.206, two 5.458, three 6.448, four 7.305."""


def room_of(domain: str) -> Room:
    return ROOM[domain.partition("-")[0]]


@dataclass(frozen=True, slots=True)
class Books:
    """The privacy room over one store."""

    ledger: Ledger
    dealt: DealtLedger
    domains: Domains
    items: Items
    vault: Vault


@contextmanager
def books_over(folder: Path, table: str) -> Iterator[Books]:
    """Keys, signatures and anchors from a data directory; the items from there or from a table."""
    with local_services(LocalSettings(data_dir=folder)) as services:
        items: Items = services.ports.items
        if table != SQLITE:
            from tensafe.storage.aws_clients import aws_client  # takes long to import
            from tensafe.storage.dynamodb_items import DynamoDbItems

            items = DynamoDbItems(aws_client("dynamodb"), table)
        vault = Vault(items, services.ports.blobs, services.ports.keyring)
        signer, anchors = services.ports.signer, services.ports.anchors
        yield Books(
            Ledger(items, vault, signer, anchors),
            DealtLedger(items, vault, signer, anchors),
            Domains(items, vault),
            items,
            vault,
        )


def register(folder: Path, table: str, domain: str) -> None:
    """What dealt runs are dealt from."""
    terms = DomainTerms(unit="record", delta=DELTA, max_epsilon=room_of(domain).max_epsilon)
    with books_over(folder, table) as books:
        books.domains.create(TENANT, domain, terms)
        entries = b"".join(unit.to_bytes(8, "big") + bytes(32) for unit in range(UNITS))
        books.domains.add_units(TENANT, domain, 0, entries)
        books.domains.finish(TENANT, domain)


def open_spender(books: Books, domain: str, run_id: str) -> Callable[[], int]:
    """What spends the domain's budget to its end, once called, and says how often it was charged."""
    room = room_of(domain)
    if room.deals and not (room.beside and run_id == "run-1"):
        return _dealt_spender(books, domain, run_id, room)
    mechanism = Mechanism(
        clip_norm=1.0,
        noise_multiplier=room.noise_multiplier,
        batch_size=8,
        max_participations=100,
        delta=DELTA,
        domain=domain,
        max_epsilon=room.max_epsilon,
    )
    key_id = noise_key_id(_secret(domain, run_id))
    run = books.ledger.open_run(TENANT, run_id, mechanism, noise_key_id=key_id, fixed_in_advance=room.beside)
    return lambda: _charged(lambda step: books.ledger.reserve(run, step, {1}))


def _dealt_spender(books: Books, domain: str, name: str, room: Room) -> Callable[[], int]:
    """Opens one run after the other, and deals and completes all deals of each."""
    config = DpAdamWConfig(
        type="tensafe_dp_adamw",
        mode="dealt",
        clip_norm=1.0,
        noise_multiplier=room.noise_multiplier,
        delta=DELTA,
        batch_size=UNITS // 4,
        max_steps=room.deals,
        domain=domain,
        fixed_in_advance=True,  # a run opens after deals of others
    )
    # So that the race is one of transactions: loss distributions are computed once in a process.
    resolve_dealt(config, books.domains.get(TENANT, domain), Spent())

    def run_dealt(number: int) -> None:
        ref = RunRef(TENANT, domain, f"{name}-{number}")
        secret = _secret(domain, ref.run_id)
        books.dealt.open_run(ref, config, noise_key_id=noise_key_id(secret), deal_seed=secret)

        def deal(step: int) -> None:
            books.dealt.deal(ref, step)
            books.items.write(books.dealt.completion(ref, step))

        assert _charged(deal) == room.deals

    return lambda: _charged(run_dealt)


def _charged(charge: Callable[[int], object]) -> int:
    """How often it went well, with 0, 1, ..., until the budget refused."""
    for number in count():
        try:
            charge(number)
        except BudgetExceeded:
            return number
    raise AssertionError


def _secret(domain: str, run_id: str) -> bytes:
    return f"{domain}/{run_id}".encode().ljust(32, b"\0")


def spent(folder: Path, table: str, domain: str) -> DomainStatement:
    """What the domain's head says, once its rows say the same."""
    with books_over(folder, table) as books:
        statement = books.ledger.show(TENANT, domain)
        assert replay(books.items, books.vault, TENANT, domain) == statement
        return statement
