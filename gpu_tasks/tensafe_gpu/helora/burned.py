"""Indices that the key holder has used: burned on disk before anything masked by them is sent.

A mask used twice gives away the difference of two tokens' activations. Masks and secret keys live in memory
alone, so a key holder that restarts has none to use again. A forked child uses none of its parent's
(copies.py). Of processes that were restored with their memory and share this log the first to burn a range
wins and the others fail; inside a range nothing tells them apart (docs/threat-model.md).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensafe.storage.sqlite_database import Database, Schema
from tensafe_gpu.helora.ports import SiteId

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS burned (
    block BLOB PRIMARY KEY, digest TEXT NOT NULL, epoch INTEGER NOT NULL, site TEXT NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID"""
_EPOCHS: Final = """
CREATE TABLE IF NOT EXISTS epochs (
    adapter TEXT NOT NULL, epoch INTEGER NOT NULL, digest TEXT NOT NULL, ended INTEGER NOT NULL,
    PRIMARY KEY (adapter, epoch, digest)
) STRICT, WITHOUT ROWID"""
SCHEMA: Final = Schema("helora-burned", 1, (_TABLE, _EPOCHS))
RESERVE: Final = 256
"""Indices burned at once, at multiples of it: a forced write per 256 tokens; a crash loses the rest."""


def rounded_up(index: int) -> int:
    """To the end of its reserve."""
    return -(-index // RESERVE) * RESERVE


class IndexBurned(RuntimeError):
    """A copy of this process burned this range: nothing was sent, and its masks must be dropped."""


@dataclass(frozen=True, slots=True)
class Burn:
    """Indices [since, until) of a block; `since` is what this process believes to be burned so far."""

    block_id: bytes
    digest: str
    epoch: int
    site: SiteId
    since: int
    until: int


class BurnLog:
    """The burned ranges of this machine, in one SQLite file. Thread- and process-safe."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path, SCHEMA)

    def burn(self, burns: Sequence[Burn]) -> None:
        """Burn all ranges durably or none. Raises IndexBurned; Unavailable when the disk does not take it."""
        with self._database.writing() as connection:
            for one in burns:
                if one.since == 0:
                    _check_goes_on(connection, one)
                    done = connection.execute(
                        "INSERT OR IGNORE INTO burned VALUES (?, ?, ?, ?, ?)",
                        (one.block_id, one.digest, one.epoch, one.site, one.until),
                    )
                else:
                    done = connection.execute(
                        "UPDATE burned SET until = ? WHERE block = ? AND until = ?",
                        (one.until, one.block_id, one.since),
                    )
                if done.rowcount != 1:
                    raise IndexBurned(f"indices from {one.since} of a block of {one.site} are burned already")

    def begin_epoch(self, adapter: str, epoch: int, digest: str) -> None:
        """End the adapter's epochs before this one: the rows of their blocks go, and none burns again.

        `adapter` names it and its holder. Raises Unavailable.
        """
        with self._database.writing() as connection:
            connection.execute("INSERT OR IGNORE INTO epochs VALUES (?, ?, ?, 0)", (adapter, epoch, digest))
            connection.execute(
                "UPDATE epochs SET ended = 1 WHERE adapter = ? AND epoch < ? AND digest <> ?",
                (adapter, epoch, digest),
            )
            connection.execute("DELETE FROM burned WHERE digest IN (SELECT digest FROM epochs WHERE ended)")

    def burned(self, block_id: bytes) -> int:
        """Indices of the block that are burned: all below this."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT until FROM burned WHERE block = ?", (block_id,)).fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()


def _check_goes_on(connection: sqlite3.Connection, burn: Burn) -> None:
    """The rows of an ended epoch are gone: without this a copy of what they stopped would pass for new."""
    ended = connection.execute("SELECT 1 FROM epochs WHERE digest = ? AND ended", (burn.digest,)).fetchone()
    if ended is not None:
        raise IndexBurned(f"the epoch of a block of {burn.site} has ended")
