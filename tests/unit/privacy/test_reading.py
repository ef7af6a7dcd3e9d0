"""What is told of a domain: a registration, a ledger or both; rows page by page; all held to the anchor."""

from __future__ import annotations

import random

import pytest

from tensafe.contracts.errors import IntegrityError, NotFound
from tensafe.privacy.domains import Domains
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.reading import DomainReader, _rows_between
from tensafe.privacy.records import head_item
from tensafe.storage.ports import Items, Put
from tensafe.vault.scope import domain_scope
from tensafe.vault.vault import Vault
from tests.unit.privacy.support import SIGNER, anchors_of, open_run
from tests.unit.privacy.test_registration import TERMS, register


@pytest.fixture
def reader(items: Items, vault: Vault) -> DomainReader:
    return DomainReader(items, vault, SIGNER, anchors_of(vault), Domains(items, vault))


def test_a_registration_and_a_ledger_are_told_each_without_the_other(
    items: Items, vault: Vault, ledger: Ledger, reader: DomainReader
) -> None:
    with pytest.raises(NotFound):
        reader.show("acme", "letters")
    register(items, vault, 1, 2, name="empty")
    ledger.reserve(open_run(ledger), 0, [1])
    empty, letters = reader.show("acme", "empty"), reader.show("acme", "letters")
    assert (empty.spent, letters.registered) == (None, None)
    assert empty.registered is not None
    assert letters.spent == ledger.show("acme", "letters")
    told = reader.summaries("acme")
    assert [(one.name, one.state, one.units, one.steps) for one in told] == [
        ("empty", "open", 2, 0),
        ("letters", "unregistered", None, 1),
    ]
    assert told[1].epsilon == letters.spent.epsilon
    assert (told[0].epsilon, told[0].delta, told[0].max_epsilon) == (0.0, TERMS.delta, TERMS.max_epsilon)
    assert reader.rows("acme", "empty") == []
    with pytest.raises(NotFound):
        reader.show("other", "letters")
    assert reader.summaries("other") == []


def test_rows_come_in_order_page_by_page(items: Items, ledger: Ledger, reader: DomainReader) -> None:
    order = random.Random(7)
    runs = [open_run(ledger, f"run-{number}", noise_multiplier=50.0) for number in range(4)]
    steps = dict.fromkeys(runs, -1)
    for _ in range(40):
        run = order.choice(runs)
        steps[run] += order.choice((1, 2, 40))
        ledger.reserve(run, steps[run], [])
    whole = reader.rows("acme", "letters", limit=100)
    assert [row["seq"] for row in whole] == list(range(1, 41))
    for size in (1, 7, 39, 40):
        paged, after = [], 0
        while page := reader.rows("acme", "letters", after=after, limit=size):
            paged += page
            after += len(page)
        assert paged == whole
    assert [row["seq"] for row in reader.rows("acme", "letters", after=38)] == [39, 40]
    scope = domain_scope("acme", "letters")
    assert len(list(_rows_between(items, scope, 10, 15))) == 5, "nothing past the head that was read first"


def test_what_lost_rows_is_not_told(items: Items, ledger: Ledger, reader: DomainReader) -> None:
    run = open_run(ledger)
    scope = domain_scope("acme", "letters")
    before = items.get(head_item(scope))
    assert before is not None
    ledger.reserve(run, 0, [1])
    now = items.get(head_item(scope))
    assert now is not None
    items.write([Put(now.key, before.body, now.version)])
    for told in (reader.show, reader.rows):
        with pytest.raises(IntegrityError, match="older copy"):
            told("acme", "letters")
    with pytest.raises(IntegrityError, match="older copy"):
        list(reader.export("acme", "letters", at_ms=0))
