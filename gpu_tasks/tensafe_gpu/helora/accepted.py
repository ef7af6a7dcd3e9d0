"""Indices that the adapter holder answered and tokens that it metered: on disk before an answer leaves.

An index that is answered twice cancels its share of the mask and gives A times a difference for nothing. So a
block's indices are accepted in rising order, once, across restarts; what is metered is never refunded.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError
from tensafe.storage.sqlite_database import Database, Schema
from tensafe_gpu.helora.burned import RESERVE
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.ports import BUDGET_SPENT, GARBAGE, VERSION_MISMATCH, HeUnavailable, SiteId

_BLOCKS: Final = """
CREATE TABLE IF NOT EXISTS blocks (
    block BLOB PRIMARY KEY, adapter TEXT NOT NULL, version INTEGER NOT NULL, epoch INTEGER NOT NULL,
    site TEXT NOT NULL, tenant TEXT NOT NULL, until INTEGER NOT NULL
) STRICT, WITHOUT ROWID"""
_METERS: Final = """
CREATE TABLE IF NOT EXISTS meters (
    adapter TEXT, version INTEGER, epoch INTEGER, site TEXT, tenant TEXT, tokens INTEGER NOT NULL,
    PRIMARY KEY (adapter, version, epoch, site, tenant)
) STRICT, WITHOUT ROWID"""
SCHEMA: Final = Schema("helora-accepted", 1, (_BLOCKS, _METERS))


@dataclass(frozen=True, slots=True)
class Offer:
    """What a connection may use: an epoch of an adapter, by one tenant, at most so many tokens per site."""

    adapter: str
    version: int
    epoch: int
    tenant: str
    tokens_per_site: int


@dataclass(frozen=True, slots=True)
class Range:
    """Indices [first, first + count) of a block."""

    block_id: bytes
    first: int
    count: int


@dataclass(slots=True)
class _Block:
    site: SiteId
    owner: tuple[str, int, int, str]
    next: int
    until: int


class AcceptLog:
    """Blocks and meters of one adapter holder, in one SQLite file. Thread-safe.

    One process at a time, by a lock of the kernel: two would answer one index twice.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError while another process has it open."""
        self._lock_fd = _locked(path)
        self._database = Database(path, SCHEMA)
        self._lock = threading.Lock()
        self._blocks: dict[bytes, _Block] = {}
        self._used: dict[tuple[str, int, int, SiteId, str], int] = {}
        self._reserved: dict[tuple[str, int, int, SiteId, str], int] = {}
        self._totals: dict[tuple[str, int, int, SiteId], int] = defaultdict(int)
        self._read()

    def open_block(self, offer: Offer, site: SiteId, block_id: bytes) -> None:
        """Take a block's id, once for ever: a second block of the same id would use the same shares.

        Raises HeUnavailable: taken, or nothing left of the budget.
        """
        with self._lock:
            if self._spent(offer, site) >= offer.tokens_per_site:
                raise HeUnavailable(BUDGET_SPENT, f"the token budget of {site} is spent for this epoch")
            if block_id in self._blocks:
                raise HeUnavailable(GARBAGE, "this block id has been used")
            owner = (offer.adapter, offer.version, offer.epoch, offer.tenant)
            with self._database.writing() as connection:
                connection.execute(
                    "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, 0)",
                    (block_id, offer.adapter, offer.version, offer.epoch, site, offer.tenant),
                )
            self._blocks[block_id] = _Block(site, owner, 0, 0)

    def sites(self, offer: Offer, ranges: Sequence[Range]) -> list[SiteId]:
        """The site of each range, as `accept` would find it; nothing is accepted. Raises HeUnavailable."""
        with self._lock:
            return self._checked(offer, ranges)[0]

    def accept(self, offer: Offer, ranges: Sequence[Range]) -> None:
        """Accept and meter all ranges durably, or none.

        Raises HeUnavailable: a block that this tenant did not prepare in this epoch, an index that is not
        new, or more tokens than the budget has left.
        """
        with self._lock:
            _, nexts, wanted = self._checked(offer, ranges)
            self._make_durable(offer, nexts, wanted)
            for block_id, index in nexts.items():
                self._blocks[block_id].next = index
            self._count(offer, wanted)

    def meter(self, offer: Offer, wanted: Mapping[SiteId, int]) -> None:
        """Meter tokens of the direct mode durably, all or none. Raises HeUnavailable beyond the budget."""
        with self._lock:
            self._check_budget(offer, wanted)
            self._make_durable(offer, {}, wanted)
            self._count(offer, wanted)

    def forget_blocks_before(self, adapter: str, version: int, epoch: int) -> None:
        """Drop the blocks of earlier epochs, which nobody can use again; meters stay."""
        with self._lock:
            with self._database.writing() as connection:
                connection.execute(
                    "DELETE FROM blocks WHERE adapter = ? AND version = ? AND epoch < ?",
                    (adapter, version, epoch),
                )
            for block_id, block in list(self._blocks.items()):
                if block.owner[:2] == (adapter, version) and block.owner[2] < epoch:
                    del self._blocks[block_id]

    def spent(self, adapter: str, version: int, epoch: int) -> dict[SiteId, dict[str, int]]:
        """Tokens metered by site and tenant; after a crash rounded up to what was reserved."""
        with self._lock:
            result: dict[SiteId, dict[str, int]] = defaultdict(dict)
            for (name, number, at, site, tenant), tokens in self._used.items():
                if (name, number, at) == (adapter, version, epoch):
                    result[site][tenant] = tokens
            return dict(result)

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        self._database.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _checked(
        self, offer: Offer, ranges: Sequence[Range]
    ) -> tuple[list[SiteId], dict[bytes, int], dict[SiteId, int]]:
        owner = (offer.adapter, offer.version, offer.epoch, offer.tenant)
        sites: list[SiteId] = []
        nexts: dict[bytes, int] = {}
        wanted: dict[SiteId, int] = defaultdict(int)
        for one in ranges:
            block = self._blocks.get(one.block_id)
            if block is None or block.owner != owner:
                raise HeUnavailable(VERSION_MISMATCH, "a block that was not prepared here in this epoch")
            first_new = nexts.get(one.block_id, block.next)
            if one.count < 1 or one.first < first_new or one.first + one.count > N:
                raise HeUnavailable(GARBAGE, "an index that is not new, or beyond its block")
            nexts[one.block_id] = one.first + one.count
            wanted[block.site] += one.count
            sites.append(block.site)
        self._check_budget(offer, wanted)
        return sites, nexts, wanted

    def _check_budget(self, offer: Offer, wanted: Mapping[SiteId, int]) -> None:
        for site, count in wanted.items():
            if self._spent(offer, site) + count > offer.tokens_per_site:
                raise HeUnavailable(BUDGET_SPENT, f"the token budget of {site} is spent for this epoch")

    def _count(self, offer: Offer, wanted: Mapping[SiteId, int]) -> None:
        for site, count in wanted.items():
            meter = self._meter(offer, site)
            self._used[meter] = self._used.get(meter, 0) + count
            self._totals[meter[:4]] += count

    def _make_durable(self, offer: Offer, nexts: dict[bytes, int], wanted: Mapping[SiteId, int]) -> None:
        blocks = [
            (_rounded_up(index), block_id)
            for block_id, index in nexts.items()
            if index > self._blocks[block_id].until
        ]
        meters = {}
        for site, count in wanted.items():
            key = self._meter(offer, site)
            if self._used.get(key, 0) + count > self._reserved.get(key, 0):
                meters[key] = _rounded_up(self._used.get(key, 0) + count)
        if not blocks and not meters:
            return
        with self._database.writing() as connection:
            connection.executemany("UPDATE blocks SET until = ? WHERE block = ?", blocks)
            connection.executemany(
                "INSERT OR REPLACE INTO meters VALUES (?, ?, ?, ?, ?, ?)",
                [(*key, tokens) for key, tokens in meters.items()],
            )
        for until, block_id in blocks:
            self._blocks[block_id].until = until
        self._reserved.update(meters)

    def _spent(self, offer: Offer, site: SiteId) -> int:
        """Of all tenants together: who has several must not learn more."""
        return self._totals[(offer.adapter, offer.version, offer.epoch, site)]

    @staticmethod
    def _meter(offer: Offer, site: SiteId) -> tuple[str, int, int, SiteId, str]:
        return (offer.adapter, offer.version, offer.epoch, site, offer.tenant)

    def _read(self) -> None:
        """What was reserved counts as used: whether it was answered is not known."""
        with self._database.reading() as connection:
            for block_id, adapter, version, epoch, site, tenant, until in connection.execute(
                "SELECT * FROM blocks"
            ):
                self._blocks[block_id] = _Block(site, (adapter, version, epoch, tenant), until, until)
        with self._database.reading() as connection:
            for *key, tokens in connection.execute("SELECT * FROM meters"):
                adapter, version, epoch, site, tenant = key
                self._used[(adapter, version, epoch, site, tenant)] = tokens
                self._totals[(adapter, version, epoch, site)] += tokens
        self._reserved = dict(self._used)


def spent_tokens(path: Path, adapter: str, version: int, epoch: int) -> dict[SiteId, dict[str, int]]:
    """What is metered on the disk, by site and tenant; also while an adapter holder serves."""
    result: dict[SiteId, dict[str, int]] = defaultdict(dict)
    if not path.exists():
        return dict(result)
    database = Database(path, SCHEMA)
    try:
        with database.reading() as connection:
            for site, tenant, tokens in connection.execute(
                "SELECT site, tenant, tokens FROM meters WHERE adapter = ? AND version = ? AND epoch = ?",
                (adapter, version, epoch),
            ):
                result[site][tenant] = tokens
    finally:
        database.close()
    return dict(result)


def _locked(path: Path) -> int:
    try:
        lock_fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock_fd)
        raise ConfigurationError(f"another adapter holder serves {path.parent}; stop it first") from None
    return lock_fd


def _rounded_up(index: int) -> int:
    return -(-index // RESERVE) * RESERVE
