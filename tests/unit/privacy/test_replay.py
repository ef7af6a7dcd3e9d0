"""Replay recomputes everything from the rows and finds what was altered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from tensafe.contracts.errors import IntegrityError, NotFound
from tensafe.privacy.records import RunRef, canonical, head_item, sha256_hex
from tensafe.privacy.replay import replay
from tensafe.storage.ports import Blobs, Delete, Item, Put
from tensafe.vault.vault import Vault
from tests.fakes import MemoryItems, MemoryKeyRing
from tests.unit.privacy.support import new_ledger, new_vault, open_run


class Domain:
    """Two runs, five steps."""

    def __init__(self) -> None:
        self.items = MemoryItems()
        self.vault: Vault = new_vault(self.items)
        self.ledger = new_ledger(self.items, self.vault)
        self.one = open_run(self.ledger, "one")
        self.two = open_run(self.ledger, "two", noise_multiplier=2.0)
        self.ledger.reserve(self.one, 0, {1, 2})
        self.ledger.reserve(self.two, 0, {1})
        self.ledger.reserve(self.one, 1, {1, 3})
        self.ledger.reserve(self.two, 5, ())
        self.ledger.reserve(self.one, 2, {4})

    def item(self, ref: RunRef, step: int | None) -> Item:
        item = self.items.get(ref.run_item if step is None else ref.row_item(step))
        assert item is not None
        return item

    def put(self, item: Item, **body: Any) -> None:
        self.items.write([Put(item.key, {**item.body, **body}, item.version, item.sealed)])

    def head(self) -> Item:
        item = self.items.get(head_item(self.one.scope))
        assert item is not None
        return item

    def rewrite(self, ref: RunRef, step: int, **fields: Any) -> None:
        """Alter a row and give it a fresh hash, as somebody who knows the format would."""
        item = self.item(ref, step)
        text = canonical({**json.loads(str(item.body["row"])), **fields})
        self.put(item, row=text, hash=sha256_hex(text))

    def rewrite_last(self, **fields: Any) -> None:
        """Alter the last row so that the whole chain and the head fit it."""
        self.rewrite(self.one, 2, **fields)
        self.put(self.head(), hash=self.item(self.one, 2).body["hash"])


@pytest.fixture
def domain() -> Domain:
    return Domain()


def test_replay_equals_the_head(domain: Domain) -> None:
    shown = domain.ledger.show("acme", "letters")
    assert replay(domain.items, domain.vault, "acme", "letters") == shown
    assert [run.participations for run in shown.runs] == [2, 1]
    assert shown.steps == 5
    domain.ledger.commit(domain.one, 1)
    assert replay(domain.items, domain.vault, "acme", "letters") == shown


def test_a_head_that_names_an_unknown_run_is_not_shown(domain: Domain) -> None:
    domain.items.write([Delete(domain.two.run_item, None)])
    with pytest.raises(IntegrityError, match="no record"):
        domain.ledger.show("acme", "letters")


def test_an_unknown_domain_is_not_found(domain: Domain) -> None:
    with pytest.raises(NotFound):
        replay(domain.items, domain.vault, "acme", "mails")


ALTERATIONS: dict[str, Callable[[Domain], None]] = {
    "a row is edited": lambda d: d.put(
        d.item(d.one, 1), row=str(d.item(d.one, 1).body["row"]).replace('"units":2', '"units":1')
    ),
    "a row is edited under its old hash": lambda d: d.put(
        d.item(d.one, 1), row=str(d.item(d.one, 1).body["row"]).replace('"at_ms":1', '"at_ms":2')
    ),
    "a row is edited and hashed anew": lambda d: d.rewrite(d.one, 1, at_ms=1),
    "the last row is edited and hashed anew": lambda d: d.rewrite(d.one, 2, at_ms=1),
    "a row is removed": lambda d: d.items.write([Delete(d.one.row_item(1), None)]),
    "the last row is removed": lambda d: d.items.write([Delete(d.one.row_item(2), None)]),
    "a row's tags are another's": lambda d: d.items.write(
        [
            Put(
                d.one.row_item(0),
                d.item(d.one, 0).body,
                d.item(d.one, 0).version,
                d.item(d.one, 1).sealed,
            )
        ]
    ),
    "a row understates its count": lambda d: d.rewrite(d.one, 1, participations=1),
    "a row understates epsilon": lambda d: d.rewrite(d.one, 1, epsilon=4.5),
    "the last row and the head understate epsilon": lambda d: d.rewrite_last(epsilon=4.5),
    "the last row and the head claim more noise": lambda d: d.rewrite_last(noise_multiplier=9.0),
    "the last row and the head understate a count": lambda d: d.rewrite_last(participations=1),
    "a row claims more noise": lambda d: d.rewrite(d.one, 0, noise_multiplier=9.0),
    "a row has a field more": lambda d: d.rewrite(d.one, 0, refund=True),
    "the head understates a count": lambda d: d.put(d.head(), runs={"one": [1.0, 1], "two": [2.0, 1]}),
    "the head claims more noise": lambda d: d.put(d.head(), runs={"one": [5.0, 2], "two": [2.0, 1]}),
    "the head forgets a run": lambda d: d.put(d.head(), runs={"one": [1.0, 2]}),
    "the head is shorter": lambda d: d.put(d.head(), seq=4),
    "the head has another hash": lambda d: d.put(d.head(), hash="0" * 64),
    "the head has another delta": lambda d: d.put(d.head(), delta=1e-4),
    "a run's record is reset": lambda d: d.put(d.item(d.one, None), steps=0, last_step=-1, participations=0),
    "a run's record is removed": lambda d: d.items.write([Delete(d.two.run_item, None)]),
    "a run claims more noise": lambda d: d.put(
        d.item(d.one, None),
        mechanism={**d.ledger.mechanism(d.one).to_body(), "noise_multiplier": 9.0},
    ),
    "a run allows fewer participations": lambda d: d.put(
        d.item(d.one, None),
        mechanism={**d.ledger.mechanism(d.one).to_body(), "max_participations": 1},
    ),
}


@pytest.mark.parametrize("alteration", list(ALTERATIONS))
def test_an_altered_ledger_is_found(domain: Domain, alteration: str) -> None:
    ALTERATIONS[alteration](domain)
    with pytest.raises(IntegrityError):
        replay(domain.items, domain.vault, "acme", "letters")


def test_a_row_under_another_step_is_not_its_charge(domain: Domain) -> None:
    """Else the step would draw the noise of the other one."""
    row = domain.item(domain.one, 0)
    domain.items.write([Put(domain.one.row_item(9), row.body, 0, row.sealed)])
    with pytest.raises(IntegrityError, match="another step"):
        domain.ledger.reserve(domain.one, 9, {1, 2})


def test_rows_survive_a_store_with_its_own_number_format(domain: Domain) -> None:
    """The hash covers the stored text, so 1.0 that comes back as 1 elsewhere in the body is harmless."""
    for item in domain.items.query(domain.one.scope.name, limit=1000):
        if item.key.sort != "key":
            body = json.loads(json.dumps(dict(item.body)).replace("1.0", "1").replace("2.0", "2"))
            if "row" in body:
                body["row"] = item.body["row"]
            domain.put(item, **body)
    assert replay(domain.items, domain.vault, "acme", "letters").steps == 5


class FixedKeyRing(MemoryKeyRing):
    """Every data key is the same."""

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        return bytes(range(32))


def test_the_stored_form_of_version_1_never_changes() -> None:
    """Other tags or another row for the same step would refund what is spent, or break every chain."""
    items = MemoryItems()
    vault = Vault(items, cast(Blobs, None), FixedKeyRing())
    ledger = new_ledger(items, vault, clock_ms=lambda: 1_700_000_000_000)
    run = open_run(ledger)
    charge = ledger.reserve(run, 7, {1, 2}, binding="sum")
    row = items.get(run.row_item(7))
    assert row is not None
    tags = vault.open(run.scope, run.tags_part(7), row.sealed)
    assert tags.hex() == "990320cbbb9a62f2b0754b866f8b8e56e3b99e5ac64ff47c06140584afb68b80"
    text = str(row.body["row"])
    assert charge.row_hash == row.body["hash"] == hashlib.sha256(text.encode()).hexdigest()
    fields = json.loads(text)
    assert text == json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert [fields.pop("epsilon"), fields.pop("run_epsilon")] == pytest.approx([4.377182474] * 2)
    assert fields == {
        "version": 1,
        "seq": 1,
        "previous": "9b52f82b9bf3db9d4a4e1d1d3028c839d8abe39283ed41a71222d7e46aa310f7",
        "run_id": "run-1",
        "step": 7,
        "at_ms": 1_700_000_000_000,
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "batch_size": 8,
        "max_participations": 3,
        "delta": 1e-5,
        "mode": "bounded_participation_independent_gaussian",
        "adjacency": "add_or_remove_one_unit",
        "accountant": "dp-accounting/gaussian-mechanism/v1",
        "noise_key_id": "818d8b4ead2609f57014fc9ce761788d",
        "units": 2,
        "units_digest": "645c8122d3fcad22e495beee20979b7b792e49027570d623cdb5e1b7b980215f",
        "binding": "sum",
        "participations": 1,
    }
