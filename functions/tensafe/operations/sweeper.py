"""Rings again for what has waited too long, so that a lost message costs seconds and never work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tensafe.operations import layout
from tensafe.operations.doorbell import Doorbell
from tensafe.operations.leases import Leases
from tensafe.operations.reader import LogReader
from tensafe.operations.records import StreamKind, StreamState
from tensafe.operations.streams import Stores, Streams, now_ms
from tensafe.storage.ports import Delete, Item

_PAGE: Final = 200


class Sweeper:
    """One pass reads the markers that are older than the limit, and looks once at each run."""

    def __init__(
        self,
        stores: Stores,
        streams: Streams,
        reader: LogReader,
        leases: Leases,
        doorbell: Doorbell,
        *,
        stale_s: float = 15.0,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._items = stores.items
        self._streams = streams
        self._reader = reader
        self._leases = leases
        self._doorbell = doorbell
        self._stale_ms = int(stale_s * 1000)
        self._clock_ms = clock_ms

    def sweep(self) -> int:
        """Ring for every stream with an open operation older than the limit; how many rings."""
        before = f"{self._clock_ms() - self._stale_ms:015d}"
        seen: set[str] = set()
        rings = 0
        for shard in layout.pending_shards():
            first = ""
            while page := self._items.query(shard, first=first, last=before, limit=_PAGE):
                rings += sum(self._look_at(marker, seen) for marker in page)
                first = layout.after(page[-1].key.sort)
        return rings

    def _look_at(self, marker: Item, seen: set[str]) -> int:
        """Rings for one marker; `seen` are the runs that need no second look in this pass."""
        stream_id, seq_text = marker.key.sort.split("/", 1)[1].rsplit("/", 1)
        if stream_id in seen:
            return 0
        stream = self._streams.find(stream_id)
        operation = self._reader.peek(stream_id, int(seq_text))
        ended = operation is None or operation.state.final
        if stream is None or operation is None or ended or stream.state is StreamState.ERASED:
            self._items.write([Delete(marker.key, None)])
            return 0
        if stream.kind is StreamKind.RUN:
            seen.add(stream_id)
            if self._leases.held(stream_id, margin_s=0):
                return 0
        self._doorbell.remind(stream, operation.seq)
        return 1
