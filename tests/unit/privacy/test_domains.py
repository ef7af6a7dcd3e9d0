"""A privacy domain is registered page by page, frozen once, closed for ever; every step may be repeated."""

from __future__ import annotations

import struct
import threading

import pytest

from tensafe.contracts.domains import MAX_PAGE_UNITS, MAX_PAGES, DomainTerms
from tensafe.contracts.errors import (
    BudgetExceeded,
    Conflict,
    IntegrityError,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    Unavailable,
)
from tensafe.privacy import domain_rules
from tensafe.privacy.domain_records import domain_item, manifest_item, page_item
from tensafe.privacy.domains import Domains
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.manifest import DELTA_TOO_LARGE, ManifestBuilder
from tensafe.privacy.manifest_cache import ManifestCache
from tensafe.storage.ports import Items, Put
from tensafe.vault.scope import domain_scope
from tensafe.vault.vault import Vault
from tests.fakes import MemoryBlobs, MemoryItems, MemoryKeyRing
from tests.unit.privacy.support import FlakyItems, open_run

TERMS = DomainTerms(unit="record", delta=1e-5, max_epsilon=3.0)


def page(*ids: int) -> bytes:
    return b"".join(struct.pack(">q", unit) + struct.pack(">q", unit) * 4 for unit in ids)


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def vault(items: Items, blobs: MemoryBlobs) -> Vault:
    return Vault(items, blobs, MemoryKeyRing())


@pytest.fixture
def domains(items: Items, vault: Vault) -> Domains:
    return Domains(items, vault, clock_ms=lambda: 1_700_000_000_000)


def registered(domains: Domains, *pages: bytes, name: str = "letters", tenant: str = "acme") -> None:
    domains.create(tenant, name, TERMS)
    for number, entries in enumerate(pages):
        domains.add_units(tenant, name, number, entries)


def test_what_is_registered_is_what_the_manifest_holds(domains: Domains, items: Items, vault: Vault) -> None:
    registered(domains, page(9, -4), page(0))
    finished = domains.finish("acme", "letters")
    builder = ManifestBuilder(TERMS)
    for unit in (-4, 0, 9):
        builder.add(unit, struct.pack(">q", unit) * 4)
    expected = builder.finish()
    assert (finished.state, finished.units, finished.root) == ("open", 3, expected.root.hex())
    assert finished.manifest_digest == expected.digest
    for reader in (domains, Domains(items, vault)):  # from memory, and from the store
        manifest = reader.manifest(reader.get("acme", "letters"))
        assert manifest.to_bytes() == expected.to_bytes()
    assert items.get(page_item(finished.scope, 0)) is None, "the pages went with the manifest"


def test_every_call_may_be_repeated(domains: Domains) -> None:
    registered(domains, page(1), page(2))
    registered(domains, page(1), page(2))
    assert (domains.get("acme", "letters").units, domains.get("acme", "letters").pages) == (2, 2)
    first = domains.finish("acme", "letters")
    assert domains.finish("acme", "letters") == first
    assert domains.create("acme", "letters", TERMS) == first
    closed = domains.close("acme", "letters")
    assert domains.close("acme", "letters") == closed
    assert domains.create("acme", "letters", TERMS).state == "closed"


@pytest.mark.parametrize("fail", ["before", "after"])
@pytest.mark.parametrize("call", ["create", "add_units", "finish", "close"])
def test_a_call_that_was_cut_off_is_repeated_and_nothing_is_lost(call: str, fail: str) -> None:
    flaky = FlakyItems(MemoryItems())
    domains = Domains(flaky, Vault(flaky, MemoryBlobs(), MemoryKeyRing()))
    steps = {
        "create": lambda: domains.create("acme", "letters", TERMS),
        "add_units": lambda: domains.add_units("acme", "letters", 0, page(5, 6)),
        "finish": lambda: domains.finish("acme", "letters"),
        "close": lambda: domains.close("acme", "letters"),
    }
    for name, step in steps.items():
        if name == call:
            flaky.fail = fail
            with pytest.raises(Unavailable):
                step()
        step()
    assert domains.get("acme", "letters").state == "closed"
    assert domains.manifest(domains.get("acme", "letters")).ids.tolist() == [5, 6]


def test_terms_never_change_and_a_frozen_domain_takes_no_units(domains: Domains) -> None:
    registered(domains, page(1))
    with pytest.raises(Conflict, match="other terms"):
        domains.create("acme", "letters", TERMS.model_copy(update={"max_epsilon": 4.0}))
    domains.finish("acme", "letters")
    with pytest.raises(Conflict, match="frozen with 1 units"):
        domains.add_units("acme", "letters", 1, page(2))
    domains.close("acme", "letters")
    for refused in (
        lambda: domains.add_units("acme", "letters", 1, page(2)),
        lambda: domains.finish("acme", "letters"),
    ):
        with pytest.raises(Conflict) as caught:
            refused()
        assert caught.value.code == domain_rules.DOMAIN_CLOSED


def test_a_page_is_replaced_while_the_domain_is_registered(domains: Domains) -> None:
    registered(domains, page(1, 2), page(2, 3))
    with pytest.raises(InvalidRequest, match="position 2 is that of position 1") as caught:
        domains.finish("acme", "letters")
    assert caught.value.field == "units[2]"
    domains.add_units("acme", "letters", 1, page(3))
    assert domains.get("acme", "letters").units == 3
    assert domains.finish("acme", "letters").units == 3


def test_a_page_is_taken_away_while_the_domain_is_registered(domains: Domains) -> None:
    registered(domains, page(1, 2), page(3), page(9))
    for _ in range(2):
        assert domains.remove_units("acme", "letters", 2).units == 3
    assert domains.finish("acme", "letters", units=3).pages == 2
    with pytest.raises(Conflict):
        domains.remove_units("acme", "letters", 0)


def test_missing_pages_and_no_units_are_refused(domains: Domains) -> None:
    registered(domains)
    with pytest.raises(InvalidRequest, match="at least one unit"):
        domains.finish("acme", "letters")
    domains.add_units("acme", "letters", 1, page(2))
    with pytest.raises(InvalidRequest, match=r"page 0 .* is missing"):
        domains.finish("acme", "letters")
    assert domains.get("acme", "letters").state == "registering"


def test_it_is_frozen_only_as_the_owner_computed_it(domains: Domains) -> None:
    registered(domains, page(1, 2))
    root = "ab" * 32
    with pytest.raises(InvalidRequest, match="holds 2 units, and 3 are expected"):
        domains.finish("acme", "letters", units=3)
    with pytest.raises(InvalidRequest, match="root"):
        domains.finish("acme", "letters", units=2, root=root)
    assert domains.get("acme", "letters").state == "registering"
    done = domains.finish("acme", "letters", units=2)
    with pytest.raises(InvalidRequest, match="root"):
        domains.finish("acme", "letters", root=root)
    assert domains.finish("acme", "letters", root=done.root) == done


@pytest.mark.parametrize(
    ("number", "entries", "error"),
    [
        (0, b"", InvalidRequest),
        (0, b"x" * 41, InvalidRequest),
        (-1, page(1), InvalidRequest),
        (MAX_PAGES, page(1), InvalidRequest),
        (0, b"x" * 40 * (MAX_PAGE_UNITS + 1), PayloadTooLarge),
    ],
)
def test_a_page_that_is_none_is_refused(
    domains: Domains, number: int, entries: bytes, error: type[Exception]
) -> None:
    registered(domains)
    with pytest.raises(error):
        domains.add_units("acme", "letters", number, entries)
    assert domains.get("acme", "letters").pages == 0


def test_a_full_page_fits_and_a_large_manifest_is_a_blob(
    domains: Domains, items: Items, blobs: MemoryBlobs
) -> None:
    full = MAX_PAGE_UNITS
    registered(domains, page(*range(full)))
    domain = domains.finish("acme", "letters")
    stored = items.get(manifest_item(domain.scope))
    assert stored is not None
    assert set(blobs.stored) == {stored.body["blob"]}
    assert domains.manifest(domain).units == full
    notes = [item for n in range(16) for item in items.query(f"due/{n:02d}")]
    assert notes == [], "the blob is claimed"


def test_names_tenants_and_absence(domains: Domains) -> None:
    for name in ("", "a/b", ".a", "a" * 129, "a b"):
        with pytest.raises(InvalidRequest):
            domains.create("acme", name, TERMS)
        assert domains.find("acme", name) is None
    registered(domains, page(1))
    with pytest.raises(NotFound):
        domains.get("other", "letters")
    registered(domains, page(1), name="b")
    registered(domains, page(1), name="a", tenant="other")
    assert domains.names("acme") == ["b", "letters"]
    assert domains.names("acme", after_name="b") == ["letters"]
    assert domains.names("acme", limit=1) == ["b"]
    assert domains.names("nobody") == []


def test_keys_of_content_hashes_are_the_domain_s_own(domains: Domains, items: Items, vault: Vault) -> None:
    keys = set()
    for tenant, name in (("acme", "a"), ("acme", "b"), ("other", "a")):
        registered(domains, tenant=tenant, name=name)
        keys.add(domains.content_key(domains.get(tenant, name)))
    assert len(keys) == 3
    again = Domains(items, vault)
    registered(domains, page(1), tenant="acme", name="a")
    assert again.content_key(again.get("acme", "a")) in keys


def test_a_large_delta_is_recorded(domains: Domains) -> None:
    domains.create("acme", "few", TERMS.model_copy(update={"delta": 1e-2}))
    domains.add_units("acme", "few", 0, page(*range(100)))
    assert domains.finish("acme", "few").warnings == (DELTA_TOO_LARGE,)


def test_a_name_with_a_ledger_is_registered_with_its_delta_and_within_its_budget(
    domains: Domains, ledger: Ledger
) -> None:
    run = open_run(ledger)
    ledger.reserve(run, 0, [1])
    with pytest.raises(Conflict, match="delta=1e-05, set by its first run"):
        domains.create("acme", "letters", TERMS.model_copy(update={"delta": 1e-6}))
    with pytest.raises(BudgetExceeded, match=r"spent epsilon 4\.37"):
        domains.create("acme", "letters", TERMS)
    assert domains.names("acme") == ["letters"], "it is listed by its name"
    kept = domains.create("acme", "letters", TERMS.model_copy(update={"max_epsilon": 8.0}))
    assert kept.state == "registering"
    assert domains.names("acme") == ["letters"]


def test_another_manifest_or_record_is_noticed(domains: Domains, items: Items, vault: Vault) -> None:
    registered(domains, page(1, 2))
    registered(domains, page(1, 2), name="other")
    one, other = domains.finish("acme", "letters"), domains.finish("acme", "other")
    holder = items.get(manifest_item(one.scope))
    moved = items.get(manifest_item(other.scope))
    assert holder is not None
    assert moved is not None
    items.write([Put(holder.key, moved.body, holder.version, sealed=moved.sealed)])
    fresh = Domains(items, vault)
    with pytest.raises(IntegrityError):
        fresh.manifest(fresh.get("acme", "letters"))
    record = items.get(domain_item(one.scope))
    assert record is not None
    items.write([Put(record.key, {**record.body, "state": "half"}, record.version, sealed=record.sealed)])
    with pytest.raises(IntegrityError):
        fresh.get("acme", "letters")


def test_many_upload_at_once(items: Items, vault: Vault) -> None:
    registered(Domains(items, vault))
    problems: list[Exception] = []

    def upload(number: int) -> None:
        try:
            Domains(items, vault).add_units("acme", "letters", number, page(number, 100 + number))
        except Exception as error:  # noqa: BLE001 - told below
            problems.append(error)

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert Domains(items, vault).finish("acme", "letters", units=16).units == 16


def test_kept_manifests_are_few_and_forgotten() -> None:
    now = [0.0]
    cache = ManifestCache(kept_s=10.0, max_units=3, clock=lambda: now[0])
    loads: list[str] = []

    def get(name: str, units: int) -> None:
        builder = ManifestBuilder(TERMS)
        for unit in range(units):
            builder.add(unit, bytes(32))

        def load():
            loads.append(name)
            return builder.finish()

        cache.get(domain_scope("acme", name), "0", load)

    get("a", 1)
    get("a", 1)
    get("b", 2)
    get("a", 1)
    assert loads == ["a", "b"]
    get("c", 9)  # too large to keep anything beside it
    get("a", 1)
    assert loads == ["a", "b", "c", "a"]
    now[0] = 11.0
    cache.forget_stale()
    get("a", 1)
    assert loads[-2:] == ["a", "a"]
