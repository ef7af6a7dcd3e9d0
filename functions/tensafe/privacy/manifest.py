"""Manifests: which units a privacy domain holds, and what each of them is, committed to by one root.

A stored manifest is

    magic               b"TSFMAN01"
    units               uint64, big-endian
    root                32 bytes: Merkle root over the entries (privacy/merkle.py)
    length, terms       uint32, big-endian, then that many bytes of canonical JSON
    entries             40 bytes each, sorted by id: id (int64, big-endian), content hash (32 bytes)

An entry is a leaf of the tree, so the root does not depend on the order in which units were added. Ids
are in clear in it: store it sealed (privacy/manifest_store.py). Whoever sees the root alone learns
nothing, and an inclusion proof shows one entry and hashes that cannot be guessed without the key.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from tensafe.contracts.domains import MAX_MANIFEST_UNITS, DomainTerms
from tensafe.contracts.errors import IntegrityError, InvalidRequest, PayloadTooLarge
from tensafe.privacy.content import CONTENT_HASH_BYTES
from tensafe.privacy.merkle import HASH_BYTES, MerkleTree

ENTRY_BYTES: Final = 8 + CONTENT_HASH_BYTES
DELTA_TOO_LARGE: Final = "delta_at_least_one_over_units"
"""Recorded in the terms: such a delta allows publishing one unit's data whole."""
_MAGIC: Final = b"TSFMAN01"
_HEAD: Final = struct.Struct(f">8sQ{HASH_BYTES}sI")
_MAX_TERMS_BYTES: Final = 64 * 1024
_ENTRY: Final = np.dtype([("id", ">i8"), ("hash", f"V{CONTENT_HASH_BYTES}")])

Int64Array = npt.NDArray[np.int64]


def warnings_of(terms: DomainTerms, units: int) -> tuple[str, ...]:
    """What is allowed and must be on record: `DELTA_TOO_LARGE` for delta >= 1/N, or nothing."""
    return (DELTA_TOO_LARGE,) if terms.delta * units >= 1.0 else ()


class Manifest:
    """A committed set of units. Immutable; make one with ManifestBuilder or `from_bytes`."""

    def __init__(self, terms: DomainTerms, entries: bytes | memoryview, root: bytes) -> None:
        self.terms: Final = terms
        self.root: Final = root
        self._bytes: Final = memoryview(entries)
        self._entries: Final = np.frombuffer(entries, dtype=_ENTRY)
        self.ids: Final[Int64Array] = self._entries["id"].astype(np.int64)
        """Every unit id, int64 [N], ascending. An index into it is an index of an entry."""
        self.warnings: Final = warnings_of(terms, self.units)

    @property
    def units(self) -> int:
        """N, the number of units; public."""
        return len(self._entries)

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) over root, N, terms and warnings: what a ledger row names."""
        head = {"root": self.root.hex(), "units": self.units, "warnings": self.warnings}
        text = _canonical({**head, "terms": self.terms.model_dump()})
        return hashlib.sha256(text).hexdigest()

    def entry(self, index: int) -> bytes:
        """Entry `index` as it is stored and hashed: 40 bytes."""
        return bytes(self._leaf(index))

    def pages(self, units: int) -> Iterator[bytes]:
        """All entries in order, `units` of them at a time."""
        size = units * ENTRY_BYTES
        return (bytes(self._bytes[at : at + size]) for at in range(0, len(self._bytes), size))

    def content_hash(self, index: int) -> bytes:
        """The content hash of entry `index`: 32 bytes."""
        return self.entry(index)[8:]

    def index_of(self, unit_id: int) -> int | None:
        """Where the unit stands, or None if it does not."""
        at = int(np.searchsorted(self.ids, unit_id))
        return at if at < self.units and self.ids[at] == unit_id else None

    def tree(self) -> MerkleTree:
        """The Merkle tree, hashed anew (about 2 s per million units); it makes inclusion proofs."""
        return MerkleTree(self.units, self._leaf)

    def verify_root(self) -> None:
        """Recompute the root from the entries. Raises IntegrityError."""
        if self.tree().root != self.root:
            raise IntegrityError("the manifest's entries do not have the root that it states")

    def to_bytes(self) -> bytes:
        """The stored form; ids in clear."""
        terms = _canonical(self.terms.model_dump())
        head = _HEAD.pack(_MAGIC, self.units, self.root, len(terms))
        return b"".join((head, terms, self._bytes))

    @classmethod
    def from_bytes(cls, stored: bytes | memoryview) -> Manifest:
        """Read what `to_bytes` wrote; entries are not copied. Checks everything but the root.

        Sealing authenticates it; call `verify_root` for bytes that come from elsewhere. Raises
        IntegrityError, and PayloadTooLarge before it allocates.
        """
        view = memoryview(stored)
        if len(view) < _HEAD.size:
            raise IntegrityError("not a stored manifest: it is too short")
        magic, units, root, terms_bytes = _HEAD.unpack_from(view)
        if magic != _MAGIC or terms_bytes > _MAX_TERMS_BYTES:
            raise IntegrityError("not a stored manifest that this version reads")
        _check_units(units)
        first = _HEAD.size + terms_bytes
        if units < 1 or len(view) != first + units * ENTRY_BYTES:
            raise IntegrityError(f"a manifest of {units} units does not have {len(view)} bytes")
        try:
            terms = DomainTerms.model_validate(json.loads(bytes(view[_HEAD.size : first])))
        except (ValidationError, ValueError) as error:
            raise IntegrityError("the manifest's terms are damaged") from error
        manifest = cls(terms, view[first:], root)
        if not (manifest.ids[1:] > manifest.ids[:-1]).all():
            raise IntegrityError("the manifest's ids do not ascend")
        return manifest

    def _leaf(self, index: int) -> memoryview:
        return self._bytes[index * ENTRY_BYTES : (index + 1) * ENTRY_BYTES]


class ManifestBuilder:
    """Takes units one by one, in any order, in 40 bytes each; `finish` sorts them and hashes the tree."""

    def __init__(self, terms: DomainTerms, *, max_units: int = MAX_MANIFEST_UNITS) -> None:
        self._terms = terms
        self._max_units = _check_units(max_units)
        self._entries = bytearray()

    def add(self, unit_id: int, content_hash: bytes) -> None:
        """Append a unit and its content hash (32 bytes). Raises InvalidRequest or PayloadTooLarge."""
        position = len(self._entries) // ENTRY_BYTES
        if position >= self._max_units:
            raise PayloadTooLarge(f"the manifest may hold {self._max_units} units; there are more")
        if not -(2**63) <= unit_id < 2**63:
            raise InvalidRequest("a unit id must be an int64", field=f"units[{position}]")
        if len(content_hash) != CONTENT_HASH_BYTES:
            raise InvalidRequest(
                f"a content hash has {CONTENT_HASH_BYTES} bytes, not {len(content_hash)}",
                field=f"units[{position}]",
            )
        self._entries += struct.pack(">q", unit_id) + content_hash

    def finish(self) -> Manifest:
        """The manifest of what was added. Raises InvalidRequest, naming the position of a repeated id."""
        if not self._entries:
            raise InvalidRequest("a privacy domain has at least one unit", field="units")
        added = np.frombuffer(self._entries, dtype=_ENTRY)
        ids = added["id"].astype(np.int64)
        order = np.argsort(ids, kind="stable")
        _refuse_repeats(ids, order)
        entries = added[order].tobytes()
        del added, ids, order
        self._entries = bytearray()
        tree = MerkleTree(
            len(entries) // ENTRY_BYTES,
            lambda index: entries[index * ENTRY_BYTES : (index + 1) * ENTRY_BYTES],
        )
        return Manifest(self._terms, entries, tree.root)


def _refuse_repeats(ids: Int64Array, order: npt.NDArray[np.intp]) -> None:
    ordered = ids[order]
    repeats = np.flatnonzero(ordered[1:] == ordered[:-1])
    if repeats.size == 0:
        return
    # The order is stable, so the later of each pair is the repetition; name the one met first.
    at = repeats[int(np.argmin(order[repeats + 1]))]
    earlier, later = int(order[at]), int(order[at + 1])
    raise InvalidRequest(
        f"the unit id at position {later} is that of position {earlier} again ({repeats.size} repetitions in "
        "all); name each unit once, with all its data",
        field=f"units[{later}]",
    )


def _check_units(units: int) -> int:
    if units > MAX_MANIFEST_UNITS:
        raise PayloadTooLarge(f"a manifest may hold {MAX_MANIFEST_UNITS} units, not {units}")
    return units


def _canonical(value: dict[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
