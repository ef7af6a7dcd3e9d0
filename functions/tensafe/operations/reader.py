"""Reading a stream's log: operations, payloads, results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from tensafe.contracts.errors import Gone, NotFound
from tensafe.operations import layout
from tensafe.operations.records import Operation, OpKind, Result, StreamRecord, seq_of, stored_from_item
from tensafe.operations.streams import Stores, now_ms
from tensafe.operations.unclaimed import Announcement
from tensafe.storage.ports import Item, Key

_PAGE: Final = 100


class LogReader:
    """Read access to the logs of all streams. The log is the truth; queue messages are doorbells."""

    def __init__(self, stores: Stores, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._items = stores.items
        self._vault = stores.vault
        self._clock_ms = clock_ms

    def _announcing(self, holder: Key) -> Announcement:
        """For a blob that `holder` is to name."""
        return Announcement(self._items, holder, self._clock_ms)

    def get(self, stream: StreamRecord, seq: int) -> Operation:
        """The operation. Raises NotFound."""
        operation = self.peek(stream.stream_id, seq)
        if operation is None:
            raise NotFound(f"no operation {seq} in this run")
        return operation

    def peek(self, stream_id: str, seq: int) -> Operation | None:
        """The operation, or None."""
        item = self._items.get(layout.op_item(stream_id, seq))
        return Operation.from_item(stream_id, seq, item) if item else None

    def operations(
        self, stream_id: str, *, first_seq: int = 0, limit: int = 100, descending: bool = False
    ) -> list[Operation]:
        """Operations of one stream from `first_seq` up (or the newest ones), in order of seq."""
        items = self._items.query(
            layout.stream_partition(stream_id),
            first=layout.op_sort(first_seq),
            last=layout.op_sort(layout.SEQ_MAX),
            limit=limit,
            descending=descending,
        )
        return [Operation.from_item(stream_id, seq_of(item), item) for item in items]

    def ahead(self, stream_id: str, first_seq: int, limit: int) -> list[tuple[Operation, Item | None]]:
        """Operations from `first_seq` up to the first that is not there, `limit` (1 to 50) at most; one read.

        Each with its stored payload, for `payload`; None where that is gone, or came a moment later.
        """
        seqs = range(first_seq, first_seq + limit)
        keys = [of(stream_id, seq) for seq in seqs for of in (layout.op_item, layout.payload_item)]
        items = self._items.get_all(keys)
        found: list[tuple[Operation, Item | None]] = []
        for seq, operation, payload in zip(seqs, items[::2], items[1::2], strict=True):
            if operation is None:
                break
            found.append((Operation.from_item(stream_id, seq, operation), payload))
        return found

    def named(self, stream_id: str, seq: int) -> tuple[StreamRecord, Operation, Item | None] | None:
        """What a message names, with its payload as in `ahead`: one read. None if either is not there."""
        keys = [layout.stream_item(stream_id, "meta"), layout.op_item(stream_id, seq)]
        meta, item, payload = self._items.get_all([*keys, layout.payload_item(stream_id, seq)])
        if meta is None or item is None:
            return None
        return StreamRecord.from_item(stream_id, meta), Operation.from_item(stream_id, seq, item), payload

    def first_open(self, stream_id: str) -> Operation | None:
        """The operation that a worker of this run would take next; reads from the last snapshot on."""
        first = snapshot_seq(self._items.get(layout.stream_item(stream_id, "snapshot"))) + 1
        while page := self.operations(stream_id, first_seq=first, limit=_PAGE):
            for operation in page:
                if not operation.state.final:
                    return operation
            first = page[-1].seq + 1
        return None

    def payload(
        self,
        stream: StreamRecord,
        seq: int,
        operation: Operation | None = None,
        stored: Item | None = None,
    ) -> bytes:
        """The payload in clear, if it belongs to the operation as it is recorded.

        `operation` and `stored` are its record and itself, for who has just read them.

        Raises Gone if a snapshot has passed it or the stream is erased, IntegrityError if somebody altered
        it or made the operation another kind.
        """
        item = stored or self._items.get(layout.payload_item(stream.stream_id, seq))
        operation = operation or self.peek(stream.stream_id, seq)
        if item is None or operation is None:
            raise Gone(f"the payload of operation {seq} has been discarded")
        return self._vault.load(stream.scope, payload_part(seq, operation.kind), stored_from_item(item))

    def result(self, stream: StreamRecord, operation: Operation) -> Result:
        """The result of a completed operation, in clear. Raises Gone once it has expired."""
        item = self._items.get(layout.result_item(stream.stream_id, operation.seq))
        if item is None:
            raise Gone(f"the result of operation {operation.seq} has expired")
        part = result_part(operation.seq, operation.kind)
        data = self._vault.load(stream.scope, part, stored_from_item(item))
        return Result(operation.result_type or "application/json", data)


def snapshot_seq(item: Item | None) -> int:
    """The seq that a run's snapshot covers; -1 without one."""
    return cast(int, item.body["seq"]) if item else -1


def payload_part(seq: int, kind: OpKind) -> str:
    """What a sealed payload is, for its associated data."""
    return f"op/{seq}/{kind.value}/payload"


def result_part(seq: int, kind: OpKind) -> str:
    """What a sealed result is, for its associated data."""
    return f"op/{seq}/{kind.value}/result"
