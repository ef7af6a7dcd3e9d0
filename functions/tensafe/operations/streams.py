"""Creating, finding, blocking and erasing runs and sampling sessions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, cast

from tensafe.contracts.errors import Gone, NotFound
from tensafe.operations import layout
from tensafe.operations.known_streams import KnownStreams
from tensafe.operations.records import StreamKind, StreamRecord, StreamState, seq_of
from tensafe.storage.ports import Blobs, ConditionFailed, Delete, Item, Items, JsonValue, Key, Put, Write
from tensafe.vault.vault import Vault

_ERASE_PAGE: Final = 25
"""With up to four writes for each item, a page fits one transaction."""
_ERASED_SAMPLER_S: Final = 7 * 86_400
_KEPT_AFTER_ERASURE: Final = ("meta", "fence", "lease", "claims")


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Stores:
    """The ports that this room uses, handed over together."""

    items: Items
    blobs: Blobs
    vault: Vault
    known: KnownStreams = field(default_factory=KnownStreams)


class Streams:
    """Registry of runs and sampling sessions."""

    def __init__(self, stores: Stores, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._items = stores.items
        self._blobs = stores.blobs
        self._vault = stores.vault
        self._known = stores.known
        self._clock_ms = clock_ms

    def creation(
        self,
        stream_id: str,
        tenant: str,
        kind: StreamKind,
        base_model: str,
        *,
        spec: Mapping[str, JsonValue] | None = None,
        session_id: str | None = None,
    ) -> tuple[StreamRecord, list[Write]]:
        """The record and the writes that create it with its data key, if it does not exist yet."""
        record = StreamRecord(
            stream_id=stream_id,
            tenant=tenant,
            kind=kind,
            base_model=base_model,
            state=StreamState.ACTIVE,
            created_ms=self._clock_ms(),
            version=1,
            spec=spec or {},
            session_id=session_id,
        )
        writes: list[Write] = [
            Put(layout.stream_item(stream_id, "meta"), record.to_body(), 0),
            self._vault.new_key(record.scope),
        ]
        if kind is StreamKind.RUN:
            writes.append(Put(layout.run_listing(tenant, record.created_ms, stream_id), {}, 0))
        if session_id is not None:
            writes.append(Put(layout.session_member(session_id, stream_id), {}, 0))
        elif kind is StreamKind.SAMPLER:
            due = layout.due_sampler(record.created_ms + layout.UNSEEN_MS, stream_id)
            writes.append(Put(due, {"sampler": stream_id}, 0))
        source = _source(record)
        if source is not None:
            writes.append(Put(layout.sampler_of_run(source, stream_id), {}, 0))
        return record, writes

    def find(self, stream_id: str) -> StreamRecord | None:
        """The record whatever its owner; None if there never was one."""
        item = self._items.get(layout.stream_item(stream_id, "meta"))
        return StreamRecord.from_item(stream_id, item) if item else None

    def get(self, stream_id: str, tenant: str, kind: StreamKind | None = None) -> StreamRecord:
        """The tenant's stream. Raises NotFound (also for another tenant's) or Gone once erased."""
        record = _theirs(self.find(stream_id), tenant, kind)
        if record.state is StreamState.ERASED:
            raise Gone("this run has been erased")
        return record

    def known(self, stream_id: str, tenant: str, kind: StreamKind) -> StreamRecord:
        """As `get`, for who hands it to `Submissions` next: as it was a while ago (`KnownStreams`)."""
        record = self._known.find(stream_id)
        if record is not None:
            return _theirs(record, tenant, kind)
        record = self.get(stream_id, tenant, kind)
        self._known.keep(record)
        return record

    def list_runs(self, tenant: str, *, limit: int = 100, before: str | None = None) -> list[StreamRecord]:
        """The tenant's runs that have not been erased, newest first."""
        entries = self._items.query(f"tenant/{tenant}/runs", last=before, limit=limit, descending=True)
        found = (self.find(entry.key.sort.split("/", 1)[1]) for entry in entries)
        return [record for record in found if record and record.state is not StreamState.ERASED]

    def of_session(self, session_id: str, *, limit: int = 1000) -> list[str]:
        """Ids of the runs and sampling sessions that a client session created, erased ones left out."""
        partition, first = f"session/{session_id}", "member/"
        entries = self._items.query(partition, first=first, last=f"{first}~", limit=limit)
        return [entry.key.sort.removeprefix(first) for entry in entries]

    def erase(self, stream_id: str, tenant: str) -> None:
        """Crypto-shred: delete the wrapped data key first, then everything sealed under it.

        The sampling sessions with a run's weights go first, so that the run can be named until they have
        gone. After its own first transaction nothing of the stream can be opened by anybody; the rest
        frees space. Idempotent: an interrupted erasure is finished by calling again, or by `Retention`.
        Idempotency records stay until they expire: a digest of the client's key, and a digest of the
        payload under the deleted key. Raises NotFound.
        """
        record = _theirs(self.find(stream_id), tenant)
        self._known.forget(stream_id)
        self._erase_samplers(stream_id, tenant)
        while record.state is not StreamState.ERASED:
            try:
                self._items.write(self._erasing(record))
                break
            except ConditionFailed:
                again = self.find(stream_id)
                if again is None:
                    raise not_found(StreamKind.RUN) from None
                record = again
        self.finish_erasure(stream_id)

    def _erase_samplers(self, run_id: str, tenant: str) -> None:
        partition, first = layout.stream_partition(run_id), "sampler/"
        while page := self._items.query(partition, first=first, last="sampler/~", limit=_ERASE_PAGE):
            for entry in page:
                self.erase(entry.key.sort.removeprefix("sampler/"), tenant)
            first = layout.after(page[-1].key.sort)

    def finish_erasure(self, stream_id: str) -> None:
        """Delete what an erased stream has left behind. Idempotent; a stream in use is left alone."""
        record = self.find(stream_id)
        if record is None or record.state is not StreamState.ERASED:
            return
        self._vault.forget(record.scope)
        # Its operations first: once they have gone, none can be set aside as a dead letter.
        self._drop_remains(record, last=layout.SET_ASIDE)
        self._drop_remains(record)
        if record.kind is StreamKind.SAMPLER:
            self._forget_sampler(record)
        self._items.write([Delete(_unfinished(record), None)])

    def _forget_sampler(self, record: StreamRecord) -> None:
        """Say for a while that it has been erased; a run says so for ever."""
        expires_s = self._clock_ms() // 1000 + _ERASED_SAMPLER_S
        meta = Put(_meta(record), record.to_body(), record.version, expires_at_s=expires_s)
        fence = Delete(layout.stream_item(record.stream_id, "fence"), None)  # nobody claims a sampler
        try:
            self._items.write([meta, fence])
        except ConditionFailed:
            return  # the same erasure, finished by somebody else

    def _erasing(self, record: StreamRecord) -> list[Write]:
        """The transaction after which nothing of the stream can be opened."""
        erased = replace(record, state=StreamState.ERASED, spec={}, cause=None)
        stream_id = record.stream_id
        fence = self._items.get(layout.stream_item(stream_id, "fence"))
        listed: list[Write] = []
        if record.session_id is not None:
            listed.append(Delete(layout.session_member(record.session_id, stream_id), None))
        source = _source(record)
        if source is not None:
            listed.append(Delete(layout.sampler_of_run(source, stream_id), None))
        return [
            *listed,
            Put(layout.stream_item(stream_id, "meta"), erased.to_body(), record.version),
            Delete(record.scope.key_item, None),
            # A new fencing token: whoever holds the run loses the right to write its results.
            Put(layout.stream_item(stream_id, "fence"), {}, fence.version if fence else 0),
            Delete(layout.run_listing(record.tenant, record.created_ms, stream_id), None),
            Put(_unfinished(record), {"erase": stream_id}, 0),
        ]

    def _drop_remains(self, record: StreamRecord, *, last: str | None = None) -> None:
        """Blobs first, then the items that name them, so that a crash leaves nothing unnamed."""
        partition, first = layout.stream_partition(record.stream_id), ""
        while page := self._items.query(partition, first=first, last=last, limit=_ERASE_PAGE):
            doomed: list[Write] = []
            for item in page:
                if item.key.sort in _KEPT_AFTER_ERASURE:
                    continue
                if item.body.get("blob"):
                    self._blobs.delete(str(item.body["blob"]))
                doomed += [Delete(item.key, None), *_referring(record, item)]
            if doomed:
                self._items.write(doomed)
            first = layout.after(page[-1].key.sort)


def _meta(record: StreamRecord) -> Key:
    return layout.stream_item(record.stream_id, "meta")


def _theirs(record: StreamRecord | None, tenant: str, kind: StreamKind | None = None) -> StreamRecord:
    if record is None or record.tenant != tenant or (kind is not None and record.kind is not kind):
        raise not_found(kind or StreamKind.RUN)
    return record


def _source(record: StreamRecord) -> str | None:
    """The run whose weights a sampling session has."""
    path = record.spec.get("model_path")
    return path.removeprefix("tinker://").partition("/")[0] if isinstance(path, str) else None


def _unfinished(record: StreamRecord) -> Key:
    """Note that the stream's erasure has begun; the same one however often it is begun."""
    return layout.due_erasure(record.created_ms, record.stream_id)


def _referring(record: StreamRecord, item: Item) -> list[Write]:
    """Deletes what other partitions say about an item of the stream."""
    body, writes = item.body, list[Write]()
    if item.key.sort.startswith(layout.SET_ASIDE):
        writes.append(Delete(Key(layout.DEAD, item.key.sort.removeprefix(layout.SET_ASIDE)), None))
    if item.key.sort.startswith("op/") and isinstance(body.get("created_ms"), int):
        marker = layout.pending_item(record.stream_id, seq_of(item), cast(int, body["created_ms"]))
        writes.append(Delete(marker, None))
    if body.get("listing"):
        writes.append(Delete(Key(f"tenant/{record.tenant}/checkpoints", str(body["listing"])), None))
    if body.get("artifact_id"):
        writes.append(Delete(layout.artifact_item(str(body["artifact_id"])), None))
        if isinstance(body.get("expires_ms"), int):
            due = layout.due_artifact(cast(int, body["expires_ms"]), str(body["artifact_id"]))
            writes.append(Delete(due, None))
    return writes


def not_found(kind: StreamKind) -> NotFound:
    """The one answer for what is absent and for what belongs to another tenant."""
    return NotFound("no such training run" if kind is StreamKind.RUN else "no such sampling session")
