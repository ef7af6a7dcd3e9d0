"""A manifest commits to every unit, is refused when it is not one, and survives storage."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tensafe.contracts.domains import MAX_MANIFEST_UNITS, DomainTerms
from tensafe.contracts.errors import Gone, IntegrityError, InvalidRequest, PayloadTooLarge
from tensafe.privacy.manifest import DELTA_TOO_LARGE, ENTRY_BYTES, Manifest, ManifestBuilder, warnings_of
from tensafe.privacy.manifest_store import load_manifest, store_manifest
from tensafe.privacy.merkle import verify_inclusion
from tensafe.vault.scope import domain_scope
from tensafe.vault.vault import Vault
from tests.fakes import MemoryBlobs, MemoryItems, MemoryKeyRing
from tests.unit.privacy.dealt import terms

int64s = st.integers(-(2**63), 2**63 - 1)


def a_hash(unit_id: int) -> bytes:
    return struct.pack(">q", unit_id) * 4


def built(ids: list[int], **changed: float) -> Manifest:
    builder = ManifestBuilder(terms(**changed))  # type: ignore[arg-type]
    for unit_id in ids:
        builder.add(unit_id, a_hash(unit_id))
    return builder.finish()


@given(st.lists(int64s, min_size=1, max_size=40, unique=True), st.randoms())
def test_the_root_commits_to_the_units_in_any_order(ids: list[int], random) -> None:
    manifest = built(ids)
    assert built(random.sample(ids, len(ids))).root == manifest.root
    assert manifest.ids.tolist() == sorted(ids)
    for unit_id in ids:
        index = manifest.index_of(unit_id)
        assert index is not None
        assert manifest.content_hash(index) == a_hash(unit_id)
        proof = manifest.tree().proof(index)
        verify_inclusion(manifest.root, manifest.units, index, manifest.entry(index), proof)
    if len(ids) > 1:
        assert built(ids[1:]).root != manifest.root


def test_an_id_that_is_not_there_has_no_index() -> None:
    assert [built([-5, 3]).index_of(unit) for unit in (-5, 3, -6, 0, 4)] == [0, 1, None, None, None]


@pytest.mark.parametrize(
    ("ids", "later", "earlier", "count"),
    [([4, 4], 1, 0, 1), ([9, 1, 5, 1, 9, 1], 3, 1, 3), ([0, -(2**63), 2**63 - 1, -(2**63)], 3, 1, 1)],
)
def test_a_repeated_id_is_named_by_position(ids: list[int], later: int, earlier: int, count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"position {later} is that of position {earlier} ") as caught:
        built(ids)
    assert caught.value.field == f"units[{later}]"
    assert f"{count} repetitions" in caught.value.message


def test_the_number_of_units_is_capped_before_anything_is_allocated() -> None:
    builder = ManifestBuilder(terms(), max_units=2)
    builder.add(1, a_hash(1))
    builder.add(2, a_hash(2))
    with pytest.raises(PayloadTooLarge, match="2 units"):
        builder.add(3, a_hash(3))
    with pytest.raises(PayloadTooLarge):
        ManifestBuilder(terms(), max_units=MAX_MANIFEST_UNITS + 1)
    stored = bytearray(built([1]).to_bytes())
    stored[8:16] = struct.pack(">Q", 2**62)
    with pytest.raises(PayloadTooLarge):
        Manifest.from_bytes(stored)


def test_what_is_no_unit_is_refused_by_position() -> None:
    builder = ManifestBuilder(terms())
    builder.add(1, a_hash(1))
    for unit_id, content in ((2**63, bytes(32)), (2, bytes(31))):
        with pytest.raises(InvalidRequest) as caught:
            builder.add(unit_id, content)
        assert caught.value.field == "units[1]"
    with pytest.raises(InvalidRequest, match="at least one unit"):
        ManifestBuilder(terms()).finish()


def test_storage_keeps_everything() -> None:
    manifest = built([5, -1, 2**40])
    again = Manifest.from_bytes(manifest.to_bytes())
    assert (again.terms, again.root, again.units) == (manifest.terms, manifest.root, 3)
    assert (again.digest, again.to_bytes()) == (manifest.digest, manifest.to_bytes())
    again.verify_root()


def _open(stored: bytes, digest: str) -> None:
    """What a reader does: the stored form, its root, and the digest that a record holds beside it."""
    manifest = Manifest.from_bytes(stored)
    manifest.verify_root()
    if manifest.digest != digest:
        raise IntegrityError("another manifest")


def test_any_changed_byte_of_a_stored_manifest_is_noticed() -> None:
    manifest = built([5, -1, 2**40])
    stored = manifest.to_bytes()
    _open(stored, manifest.digest)
    for at in range(len(stored)):
        damaged = bytearray(stored)
        damaged[at] ^= 1
        with pytest.raises((IntegrityError, PayloadTooLarge)):
            _open(bytes(damaged), manifest.digest)
    turned = stored[:-80] + stored[-40:] + stored[-80:-40]
    for cut in (stored[:20], stored[:-1], stored + b"x", b"", turned):
        with pytest.raises(IntegrityError):
            Manifest.from_bytes(cut)


def test_entries_of_fixed_width_can_be_read_in_place() -> None:
    stored = built([5, -1, 2**40]).to_bytes()
    entries = np.frombuffer(stored[-3 * ENTRY_BYTES :], dtype=[("id", ">i8"), ("hash", "V32")])
    assert entries["id"].tolist() == [-1, 5, 2**40]
    assert bytes(entries["hash"][1]) == a_hash(5)


def test_terms_are_part_of_the_digest_and_a_large_delta_is_recorded() -> None:
    plain, loose = built([1, 2, 3]), built([1, 2, 3], delta=1e-2)
    assert plain.root == loose.root
    assert plain.digest != loose.digest
    assert plain.warnings == loose.warnings == ()
    assert warnings_of(terms(delta=1e-2), 100) == (DELTA_TOO_LARGE,)
    assert warnings_of(terms(delta=1e-2), 99) == ()


def test_terms_refuse_what_they_do_not_know() -> None:
    for wrong in ({"unit": "team"}, {"delta": 0.5}, {"max_epsilon": 0}, {"extra": 1}):
        with pytest.raises(ValidationError):
            DomainTerms.model_validate({"unit": "user", "delta": 1e-6, "max_epsilon": 3, **wrong})


@pytest.mark.parametrize("units", [3, 3000])
def test_a_sealed_manifest_opens_in_its_domain_alone(units: int) -> None:
    items = MemoryItems()
    vault = Vault(items, MemoryBlobs(), MemoryKeyRing())
    ours, theirs = domain_scope("t", "ours"), domain_scope("t", "theirs")
    vault.ensure_key(ours)
    vault.ensure_key(theirs)
    manifest = built(list(range(units)))
    stored = store_manifest(vault, ours, manifest)
    assert (stored.blob_key is None) == (units == 3)
    assert load_manifest(vault, ours, stored, manifest.digest).digest == manifest.digest
    with pytest.raises(IntegrityError):
        load_manifest(vault, theirs, stored, manifest.digest)
    with pytest.raises(IntegrityError, match="not the manifest"):
        load_manifest(vault, ours, stored, built([1]).digest)
    vault.discard(stored)
    if units > 3:
        with pytest.raises(Gone):
            load_manifest(vault, ours, stored, manifest.digest)
