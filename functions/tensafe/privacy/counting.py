"""Participation counts of runs, rebuilt from their rows and kept up to date in memory.

The rows are the only record of who took part, so a step writes 16 bytes per unit, not the counts of
all units, and a recount by `replay` is independent of anything cached.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from tensafe.contracts.errors import IntegrityError
from tensafe.privacy import units
from tensafe.privacy.records import Row, RunRecord, RunRef, row_sort
from tensafe.storage.ports import Item, Items
from tensafe.vault.vault import Vault

_CACHED_RUNS: Final = 256
_PAGE: Final = 100


@dataclass(slots=True)
class _Counted:
    """Counts of a run up to and including `last_step`."""

    counts: units.ParticipationCounts
    last_step: int = -1


def open_tags(vault: Vault, ref: RunRef, item: Item) -> tuple[Row, list[bytes]]:
    """A stored row, verified, and the tags of its units. Raises IntegrityError."""
    row = Row.from_item(item)
    tags = units.unpack(vault.open(ref.scope, ref.tags_part(row.step), item.sealed))
    if row.units != len(tags):
        raise IntegrityError(f"ledger row {item.key.sort} holds {len(tags)} units and says {row.units}")
    return row, tags


class RunCounts:
    """Counts per run. Not thread-safe: the ledger holds its lock."""

    def __init__(self, items: Items, vault: Vault) -> None:
        self._items = items
        self._vault = vault
        self._runs: OrderedDict[RunRef, _Counted] = OrderedDict()

    def up_to(self, ref: RunRef, record: RunRecord) -> units.ParticipationCounts:
        """Counts after the last step of `record`, reading only rows not yet seen.

        Raises IntegrityError if the rows do not add up to the record.
        """
        fresh = _Counted(units.ParticipationCounts(record.mechanism.min_separation))
        counted = self._runs.setdefault(ref, fresh)
        self._runs.move_to_end(ref)
        while len(self._runs) > _CACHED_RUNS:
            self._runs.popitem(last=False)
        while counted.last_step < record.last_step:
            self._read_page(ref, record, counted)
        state = (counted.counts.steps, counted.last_step, counted.counts.largest)
        if state != (record.steps, record.last_step, record.participations):
            del self._runs[ref]
            raise IntegrityError(f"the ledger of run {ref.run_id} does not agree with its rows")
        return counted.counts

    def _read_page(self, ref: RunRef, record: RunRecord, counted: _Counted) -> None:
        page = self._items.query(
            ref.scope.name,
            first=row_sort(ref.run_id, counted.last_step + 1),
            last=row_sort(ref.run_id, record.last_step),
            limit=_PAGE,
        )
        if not page:
            raise IntegrityError(f"the ledger of run {ref.run_id} lacks rows")
        for item in page:
            row, tags = open_tags(self._vault, ref, item)
            counted.counts.add(tags)
            counted.last_step = row.step
