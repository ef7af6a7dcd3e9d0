"""What workers write to the log: started, completed, failed, reopened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from tensafe.operations import layout
from tensafe.operations.completions import Completions, Crowded
from tensafe.operations.doorbell import Doorbell
from tensafe.operations.reader import LogReader, result_part
from tensafe.operations.records import (
    Failure,
    Operation,
    OpState,
    Result,
    StreamKind,
    StreamRecord,
    stored_from_item,
    stored_to_body,
)
from tensafe.operations.streams import Stores, now_ms
from tensafe.storage.ports import ConditionFailed, Delete, Items, Put, Write

DEAD_LETTER: Final = "dead_letter"
RESULT_TTL_S: Final = 7 * 86_400
_DISCARD_PAGE: Final = 90


class Outcomes(LogReader):
    """Write access for the process that holds a run's lease, or a sampling message."""

    def __init__(self, stores: Stores, doorbell: Doorbell, *, clock_ms: Callable[[], int] = now_ms) -> None:
        super().__init__(stores, clock_ms=clock_ms)
        self._doorbell = doorbell
        self._closing = Closing(stores.items)

    def start(self, operation: Operation, conditions: Sequence[Write], *, owner: str = "") -> Operation:
        """Mark as run by `owner` and count the try; of a run, only the holder of the lease can.

        Raises ConditionFailed: index 0 if the operation itself changed, more for a condition. After any other
        error it is not known whether it is begun: `put_back` with what `begun` gives finds out.
        """
        running = self.begun(operation, owner=owner)
        key = layout.op_item(operation.stream_id, operation.seq)
        # Nothing is promised by it: if power fails before the outcome is durable, the operation is pending
        # again, and this try is not counted.
        self._items.write_relaxed([Put(key, running.to_body(), operation.version), *conditions])
        return running

    @staticmethod
    def begun(operation: Operation, *, owner: str = "") -> Operation:
        """As `start` leaves it."""
        return replace(
            operation,
            state=OpState.RUNNING,
            version=operation.version + 1,
            tries=operation.tries + 1,
            owner=owner,
        )

    def put_back(self, operation: Operation, *, counted: bool) -> bool:
        """A running operation is pending again; `counted` says whether the try was the operation's fault.

        False, and nothing happens, if it is not as it is given: never begun, ended, or begun by somebody else
        meanwhile.
        """
        if self.peek(operation.stream_id, operation.seq) != operation:
            return False
        tries = operation.tries if counted else max(0, operation.tries - 1)
        return self._written(replace(operation, state=OpState.PENDING, tries=tries, owner=None))

    def fence(self, operation: Operation) -> bool:
        """Write it as it is: no earlier write of it that storage gave no answer to can take effect any more.

        False if it has changed. Raises Unavailable, and it may be written all the same.
        """
        return self._written(operation)

    def _written(self, operation: Operation) -> bool:
        key = layout.op_item(operation.stream_id, operation.seq)
        try:
            self._items.write([Put(key, operation.to_body(), operation.version)])
        except ConditionFailed:
            return False
        return True

    def complete(
        self,
        stream: StreamRecord,
        operation: Operation,
        result: Result,
        conditions: Sequence[Write] = (),
    ) -> None:
        """Store the result and close the operation, in one transaction; a sample's payload is deleted.

        Raises ConditionFailed: index 0 if the operation itself changed, more for a condition.
        """
        key = layout.result_item(stream.stream_id, operation.seq)
        announce = self._announcing(key)
        part = result_part(operation.seq, operation.kind)
        stored = self._vault.store(stream.scope, part, result.data, announce=announce)
        done = replace(
            operation,
            state=OpState.COMPLETED,
            finished_ms=self._clock_ms(),
            result_type=result.content_type,
            result_size_bytes=len(result.data),
        )
        expires_s = self._clock_ms() // 1000 + RESULT_TTL_S
        kept: list[Write] = [
            Put(key, stored_to_body(stored), 0, sealed=stored.inline, expires_at_s=expires_s)
        ]
        if stored.blob_key is not None:
            # The item expires by itself, its blob does not.
            kept.append(Put(layout.due_blob(expires_s * 1000, stored.blob_key), {"blob": stored.blob_key}, 0))
        try:
            self._close(stream, done, [*kept, *announce.claiming, *conditions])
        except (ConditionFailed, Crowded):
            self._vault.discard(stored)
            raise

    def fail(
        self,
        stream: StreamRecord,
        operation: Operation,
        failure: Failure,
        conditions: Sequence[Write] = (),
    ) -> None:
        """Close the operation with its cause. Raises ConditionFailed."""
        done = replace(operation, state=OpState.FAILED, finished_ms=self._clock_ms(), failure=failure)
        self._close(stream, done, conditions)

    def reopen(self, stream: StreamRecord, operation: Operation, conditions: Sequence[Write]) -> None:
        """Make a failed operation pending again (redrive of a dead letter). Raises ConditionFailed."""
        pending = replace(operation, state=OpState.PENDING, finished_ms=None, failure=None, tries=0)
        key = layout.op_item(stream.stream_id, operation.seq)
        marker = layout.pending_item(stream.stream_id, operation.seq, operation.created_ms)
        self._items.write([Put(key, pending.to_body(), operation.version), Put(marker, {}, 0), *conditions])
        self._doorbell.ring(stream, operation.seq)

    def discard_payloads(self, stream: StreamRecord, first_seq: int, last_seq: int) -> None:
        """Delete payloads that nothing will read again; what a crash leaves, the next call finds."""
        last = layout.payload_item(stream.stream_id, last_seq).sort
        first = layout.payload_item(stream.stream_id, first_seq).sort
        partition = layout.stream_partition(stream.stream_id)
        while items := self._items.query(partition, first=first, last=last, limit=_DISCARD_PAGE):
            # Blobs before the items that name them.
            for item in items:
                self._vault.discard(stored_from_item(item))
            self._items.write([Delete(item.key, None) for item in items])
            first = layout.after(items[-1].key.sort)

    def _close(self, stream: StreamRecord, done: Operation, extra: Sequence[Write]) -> None:
        # A run's payload goes with its next snapshot, and a dead letter's stays for a redrive.
        unread = stream.kind is StreamKind.SAMPLER and not _dead_letter(done)
        if unread and done.payload_inline:
            extra = [*extra, Delete(layout.payload_item(stream.stream_id, done.seq), None)]
        self._closing(stream, done, extra)
        self._doorbell.finished(done.stream_id)
        if unread and not done.payload_inline:  # a blob cannot go with the transaction
            self.discard_payloads(stream, done.seq, done.seq)


class Closing:
    """One transaction: final state, marker gone, and a completion if anyone lists them."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._completions = Completions(items)

    def __call__(self, stream: StreamRecord, done: Operation, extra: Sequence[Write]) -> None:
        """Raises ConditionFailed, with index 0 for the operation and 2 or more for `extra`, or Crowded."""
        key, expires_s = layout.op_item(done.stream_id, done.seq), _expires_s(stream, done)
        writes: list[Write] = [
            Put(key, done.to_body(), done.version, expires_at_s=expires_s),
            Delete(layout.pending_item(done.stream_id, done.seq, done.created_ms), None),
            *extra,
        ]
        if stream.kind is StreamKind.SAMPLER:
            self._completions.close(done, writes, expires_s=expires_s)
        else:
            self._items.write(writes)


def _expires_s(stream: StreamRecord, done: Operation) -> int | None:
    """A sample goes with its result; a run's log is replayed, and a dead letter can be redriven."""
    if stream.kind is StreamKind.RUN or _dead_letter(done):
        return None
    return (done.finished_ms or done.created_ms) // 1000 + RESULT_TTL_S


def _dead_letter(done: Operation) -> bool:
    return done.failure is not None and done.failure.code == DEAD_LETTER
