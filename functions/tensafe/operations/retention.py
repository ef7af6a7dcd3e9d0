"""Deletes what has had its time: expired artifacts, blobs, idle sessions, what an erasure left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from tensafe.contracts.errors import Conflict
from tensafe.operations import layout
from tensafe.operations.checkpoints import Checkpoints
from tensafe.operations.idle import IdleSessions
from tensafe.operations.streams import Stores, Streams, now_ms
from tensafe.operations.unclaimed import claimed
from tensafe.storage.ports import Delete, Item

log = logging.getLogger(__name__)

_PAGE: Final = 100


class Retention:
    """Reads each shard of `due` from its oldest entry to the present; nothing is scanned."""

    def __init__(
        self, stores: Stores, checkpoints: Checkpoints, *, clock_ms: Callable[[], int] = now_ms
    ) -> None:
        self._items = stores.items
        self._blobs = stores.blobs
        self._checkpoints = checkpoints
        idle = IdleSessions(stores, clock_ms=clock_ms)
        self._ends: Mapping[str, Callable[[str], None]] = {
            "erase": Streams(stores, clock_ms=clock_ms).finish_erasure,
            "session": idle.end_session,
            "sampler": idle.end_sampler,
        }
        self._clock_ms = clock_ms

    def purge(self) -> int:
        """Delete what is due; how many entries were settled. Idempotent, safe to kill."""
        settled = sum(self._purge(shard) for shard in layout.due_shards())
        if settled:
            log.info("expired things deleted", extra={"count": settled})
        return settled

    def _purge(self, shard: str) -> int:
        until, settled, first = layout.due_until(self._clock_ms()), 0, ""
        while page := self._items.query(shard, first=first, last=until, limit=_PAGE):
            done = [entry for entry in page if self._settle(entry)]
            if done:
                self._items.write([Delete(entry.key, None) for entry in done])
            settled += len(done)
            first = layout.after(page[-1].key.sort)
        return settled

    def _settle(self, entry: Item) -> bool:
        """Whether the entry has nothing left to do."""
        blob_key = entry.body.get("blob")
        if blob_key is not None:
            if "sort" in entry.body and claimed(self._items, entry):
                return True
            self._blobs.delete(str(blob_key))
            return True
        for what, end in self._ends.items():
            if what in entry.body:
                end(str(entry.body[what]))
                return True
        try:
            self._checkpoints.delete_expired(str(entry.body["artifact_id"]))
        except Conflict:
            return False  # it is being saved or changed: look again next time
        return True
