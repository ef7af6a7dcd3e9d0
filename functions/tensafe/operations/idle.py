"""The end of client sessions and sampling sessions that nobody uses any more; `Retention` asks for it.

Runs and what they saved stay: they are somebody's work. A sampling session holds nothing but samples,
which expire, and a client session nothing but the names of what it created.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tensafe.operations import layout
from tensafe.operations.records import StreamKind, StreamRecord, StreamState
from tensafe.operations.sessions import Sessions
from tensafe.operations.streams import Stores, Streams, now_ms
from tensafe.storage.ports import ConditionFailed, Delete, JsonValue, Key, Put

_AGAIN_MS: Final = 86_400_000
_ENDING: Final = "this sampling session ends because nobody has used it for a month; create a new one"


class IdleSessions:
    """Ends what has been idle for `layout.UNSEEN_MS`; notes when to look again at what has not.

    Idempotent: what is killed half-way is finished by calling again.
    """

    def __init__(self, stores: Stores, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._items = stores.items
        self._streams = Streams(stores, clock_ms=clock_ms)
        self._sessions = Sessions(stores.items, clock_ms=clock_ms)
        self._clock_ms = clock_ms

    def end_session(self, session_id: str) -> None:
        """Drop the client session unless its client has been seen, and its sampling sessions unless used."""
        again_ms = self._sessions.drop_unseen(session_id)
        if again_ms is not None:
            self._note(layout.due_session(again_ms, session_id), {"session": session_id})
            return
        while members := self._streams.of_session(session_id):
            for stream_id in members:
                self.end_sampler(stream_id)
                self._items.write([Delete(layout.session_member(session_id, stream_id), None)])

    def end_sampler(self, sampler_id: str) -> None:
        """Erase the sampling session unless it has samples; a run is left alone."""
        record = self._streams.find(sampler_id)
        if record is None or record.kind is not StreamKind.SAMPLER or record.state is StreamState.ERASED:
            return
        # Closed before the last look, so that no sample is taken and then erased.
        closed = replace(record, state=StreamState.BLOCKED, cause=_ENDING)
        if not self._used(record) and self._change(closed) and not self._used(record):
            self._streams.erase(sampler_id, record.tenant)
            return
        self._reopen(sampler_id)
        again = layout.due_sampler(self._clock_ms() + _AGAIN_MS, sampler_id)
        self._note(again, {"sampler": sampler_id})

    def _reopen(self, sampler_id: str) -> None:
        record = self._streams.find(sampler_id)
        if record is not None and record.state is StreamState.BLOCKED:
            self._change(replace(record, state=StreamState.ACTIVE, cause=None))

    def _used(self, sampler: StreamRecord) -> bool:
        """Whether a sample is open or has a result: its operations go with their results."""
        first, last = layout.op_sort(0), layout.op_sort(layout.SEQ_MAX)
        partition = layout.stream_partition(sampler.stream_id)
        return bool(self._items.query(partition, first=first, last=last, limit=1))

    def _note(self, key: Key, body: dict[str, JsonValue]) -> None:
        try:
            self._items.write([Put(key, body, 0)])
        except ConditionFailed:
            return  # left by a process that died before it settled the note at hand

    def _change(self, record: StreamRecord) -> bool:
        key = layout.stream_item(record.stream_id, "meta")
        try:
            self._items.write([Put(key, record.to_body(), record.version)])
        except ConditionFailed:
            return False  # it is being erased, or looked at by somebody else
        return True
