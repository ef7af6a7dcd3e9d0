"""How operations enter the log: submitted, refused, cancelled by their owner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tensafe.contracts.errors import (
    Conflict,
    Gone,
    InvalidRequest,
    NotFound,
    RunBlocked,
    TensafeError,
    Unavailable,
)
from tensafe.correlation import current_request_id, current_traceparent
from tensafe.operations import layout
from tensafe.operations.doorbell import Doorbell
from tensafe.operations.outcomes import Closing
from tensafe.operations.reader import LogReader, payload_part
from tensafe.operations.records import (
    Failure,
    Operation,
    OpKind,
    OpState,
    StreamKind,
    StreamRecord,
    StreamState,
    stored_from_item,
    stored_to_body,
)
from tensafe.operations.streams import Stores, now_ms
from tensafe.operations.tombstones import is_tombstone, tombstone
from tensafe.operations.window import SEQ_WINDOW, Window
from tensafe.storage.ports import Check, ConditionFailed, Delete, Put, Write
from tensafe.vault.vault import Stored

_GAP_PAGE: Final = 90
IDEMPOTENCY_TTL_S: Final = 86_400
_RETRIES: Final = 64


@dataclass(frozen=True, slots=True)
class Submission:
    """An operation as the edge hands it in. `payload` is clear text; it is sealed before it rests."""

    seq: int
    kind: OpKind
    payload: bytes
    content_type: str = "application/json"
    idempotency_key: str | None = None
    ring: bool = True
    """False if somebody else will ring once the operation can run."""
    identity: bytes | None = None
    """What makes a retry the same request, where a client draws part of the payload anew for each try."""


class Submissions(LogReader):
    """Write access for the edge: idempotent on (stream, seq) and on the client's idempotency key."""

    def __init__(self, stores: Stores, doorbell: Doorbell, *, clock_ms: Callable[[], int] = now_ms) -> None:
        super().__init__(stores, clock_ms=clock_ms)
        self._doorbell = doorbell
        self._closing = Closing(stores.items)
        self._window = Window()
        self._known_streams = stores.known

    def create(self, stream: StreamRecord, creation: Sequence[Write], submission: Submission) -> Operation:
        """Create the stream, then submit its first operation; a retry finds what is there.

        Raises Conflict if the id is in use for something else, NotFound if it is another tenant's.

        Two transactions, since the payload is sealed under the data key that the first one stores. A
        crash between them leaves a stream without an operation 0, which the client's retry fills.
        """
        try:
            self._items.write(creation)
        except ConditionFailed:
            asked, stream = stream, self._present(stream)
            if (asked.kind, asked.base_model) != (stream.kind, stream.base_model):
                raise Conflict("this id is in use for another base model", field="base_model") from None
        return self.submit(stream, submission)

    def submit(self, stream: StreamRecord, submission: Submission) -> Operation:
        """Write the operation durably and ring; returns the stored one if it was submitted before.

        Raises Conflict if the seq or the idempotency key is taken by another payload, RunBlocked or
        Gone by the stream's state, InvalidRequest for a seq out of range.

        Mostly the seq is new and the stream as it was, so the transaction is tried before anything is read:
        its conditions say whether it is so. Only then is looked at what is there.
        """
        print_ = self._fingerprint(stream, submission)
        if self._is_admitted(stream, submission.seq):
            operation = self._write(stream, submission, print_)
            if operation is not None:
                return operation
        for _ in range(_RETRIES):
            stream = self._read_anew(stream)
            known = self._known(stream, submission, print_)
            if known is not None:
                self._ring_again(stream, known, submission)
                return known
            self._admit(stream, submission.seq)
            operation = self._write(stream, submission, print_)
            if operation is not None:
                return operation
        raise Unavailable("the run is changing too fast; try again")

    def append(self, stream: StreamRecord, submission: Submission) -> Operation:
        """Submit at the next free seq (`submission.seq` is ignored); idempotent on the key alone.

        For a run whose operations are numbered here alone: behind the last one that this process saw, the
        next seq is free or taken, and never a gap.
        """
        print_ = self._fingerprint(stream, submission)
        highest = self._window.highest(stream.stream_id)
        if highest is not None and self._is_admitted(stream, highest + 1):
            operation = self._write(stream, replace(submission, seq=highest + 1), print_)
            if operation is not None:
                return operation
        for _ in range(_RETRIES):
            stream = self._read_anew(stream)
            known = self._known_key(stream, submission, print_)
            if known is not None:
                self._ring_again(stream, known, submission)
                return known
            newest = self.operations(stream.stream_id, limit=1, descending=True)
            submission = replace(submission, seq=newest[0].seq + 1 if newest else 1)
            self._admit(stream, submission.seq)
            operation = self._write(stream, submission, print_)
            if operation is not None:
                return operation
        raise Unavailable("the run is changing too fast; try again")

    def reject(self, stream: StreamRecord, seq: int, kind: OpKind, error: TensafeError) -> Operation | None:
        """Leave a tombstone for a refused submission, so that nothing waits for its seq for ever.

        Returns the tombstone, also one that stood there before. None for a stream that is erased and for
        a seq that is out of range or taken by an operation that was accepted: these need none.
        """
        for _ in range(_RETRIES):
            try:
                stream = self._present(stream)
                self._admit_seq(stream, seq)
            except (NotFound, InvalidRequest):
                return None
            present = self.peek(stream.stream_id, seq)
            if stream.state is StreamState.ERASED or present is not None:
                return present if present is not None and is_tombstone(present) else None
            try:
                tomb = tombstone(stream.stream_id, seq, kind, error, self._clock_ms())
                self._items.write([tomb, _unchanged(stream)])
            except ConditionFailed:
                continue
            if stream.kind is StreamKind.RUN:
                self._doorbell.ring(stream, seq)
            return self.get(stream, seq)
        return None

    def close_gap(
        self,
        stream: StreamRecord,
        first_seq: int,
        last_seq: int,
        error: TensafeError,
        conditions: Sequence[Write],
    ) -> bool:
        """Tombstones for every seq of the range that never arrived; whether all of them are there now.

        False if one arrived meanwhile, or a condition failed: then some tombstones may have been left.
        """
        now = self._clock_ms()
        for first in range(first_seq, last_seq + 1, _GAP_PAGE):
            seqs = range(first, min(first + _GAP_PAGE, last_seq + 1))
            writes = [tombstone(stream.stream_id, seq, OpKind.NOOP, error, now) for seq in seqs]
            try:
                self._items.write([*writes, *conditions])
            except ConditionFailed:
                return False
        return True

    def cancel(self, stream: StreamRecord, seq: int) -> Operation:
        """Cancel an operation that is pending, or a sample that runs; all else stays as it is."""
        for _ in range(_RETRIES):
            operation = self.get(stream, seq)
            begun = operation.state is OpState.RUNNING and stream.kind is StreamKind.RUN
            if begun or operation.state.final:
                return operation
            failure = Failure("cancelled", "the operation was cancelled", "user")
            done = replace(operation, state=OpState.CANCELLED, finished_ms=self._clock_ms(), failure=failure)
            try:
                self._closing(stream, done, ())
            except ConditionFailed:
                continue
            self._doorbell.finished(stream.stream_id)
            self._discard_payload(stream, seq)
            return done
        raise Unavailable("the operation is changing; try again")

    def _discard_payload(self, stream: StreamRecord, seq: int) -> None:
        """What was cancelled never runs; a crash before this leaves its payload to the next snapshot."""
        item = self._items.get(layout.payload_item(stream.stream_id, seq))
        if item is not None:
            self._vault.discard(stored_from_item(item))
            self._items.write([Delete(item.key, None)])

    def _ring_again(self, stream: StreamRecord, known: Operation, submission: Submission) -> None:
        """The process that wrote it may have died before it rang."""
        if submission.ring and not known.state.final:
            self._doorbell.ring(stream, known.seq)

    def _write(self, stream: StreamRecord, submission: Submission, print_: str) -> Operation | None:
        """The new operation, or None if something changed since it was admitted."""
        announce = self._announcing(layout.payload_item(stream.stream_id, submission.seq))
        part = payload_part(submission.seq, submission.kind)
        stored = self._vault.store(stream.scope, part, submission.payload, announce=announce)
        operation = self._new_operation(stream, submission, print_, stored)
        writes = self._submission_writes(stream, submission, operation, stored)
        writes += [*announce.claiming, _unchanged(stream)]
        try:
            self._items.write(writes)
        except ConditionFailed:
            self._vault.discard(stored)
            return None
        self._window.saw(stream.stream_id, operation.seq)
        if submission.ring:
            self._doorbell.ring(stream, operation.seq)
        return operation

    def _present(self, stream: StreamRecord) -> StreamRecord:
        item = self._items.get(layout.stream_item(stream.stream_id, "meta"))
        if item is None or item.body["tenant"] != stream.tenant:
            raise NotFound("no such training run")
        return StreamRecord.from_item(stream.stream_id, item)

    def _read_anew(self, stream: StreamRecord) -> StreamRecord:
        """The stream as it is, which is not always as it was known. Raises NotFound, Gone."""
        self._known_streams.forget(stream.stream_id)
        present = self._present(stream)
        if present.state is StreamState.ERASED:
            raise Gone("this run has been erased")
        self._known_streams.keep(present)
        return present

    def _fingerprint(self, stream: StreamRecord, submission: Submission) -> str:
        same = submission.payload if submission.identity is None else submission.identity
        return self._vault.fingerprint(stream.scope, submission.kind.value, same)

    def _known_key(self, stream: StreamRecord, submission: Submission, print_: str) -> Operation | None:
        if submission.idempotency_key is None:
            return None
        record = self._items.get(layout.idempotency_item(stream.tenant, submission.idempotency_key))
        if record is None:
            return None
        if record.body["fingerprint"] != print_ or record.body["stream"] != stream.stream_id:
            raise Conflict(
                "this Idempotency-Key was used with another request; give this one a key of its own"
            )
        return self.get(stream, int(str(record.body["seq"])))

    def _known(self, stream: StreamRecord, submission: Submission, print_: str) -> Operation | None:
        operation = self._known_key(stream, submission, print_) or self.peek(stream.stream_id, submission.seq)
        if operation is not None and operation.fingerprint != print_:
            raise Conflict(
                f"seq_id {submission.seq} of this run was already used with another request; give this one "
                "a number of its own",
                field="seq_id",
            )
        return operation

    def _admit(self, stream: StreamRecord, seq: int) -> None:
        if stream.state is StreamState.BLOCKED:
            raise RunBlocked(stream.cause or "an earlier operation of this run died; see dead letters")
        self._admit_seq(stream, seq)

    def _is_admitted(self, stream: StreamRecord, seq: int) -> bool:
        """Whether `_admit` lets it pass by what is known without reading."""
        in_range = 0 <= seq <= layout.SEQ_MAX
        near = stream.kind is StreamKind.SAMPLER or self._window.reaches(stream.stream_id, seq)
        return in_range and near and stream.state is StreamState.ACTIVE

    def _admit_seq(self, stream: StreamRecord, seq: int) -> None:
        if not 0 <= seq <= layout.SEQ_MAX:
            raise InvalidRequest(f"seq_id must be between 0 and {layout.SEQ_MAX}", field="seq_id")
        if stream.kind is StreamKind.SAMPLER:
            return
        if self._window.reaches(stream.stream_id, seq):
            return
        newest = self.operations(stream.stream_id, limit=1, descending=True)
        highest = newest[0].seq if newest else -1
        self._window.saw(stream.stream_id, highest)
        if seq > highest + SEQ_WINDOW:
            raise InvalidRequest(
                f"seq_id {seq} is too far ahead: the highest one received is {highest}", field="seq_id"
            )

    def _new_operation(
        self, stream: StreamRecord, submission: Submission, fingerprint: str, stored: Stored
    ) -> Operation:
        return Operation(
            stream.stream_id,
            submission.seq,
            submission.kind,
            OpState.PENDING,
            self._clock_ms(),
            fingerprint,
            1,
            content_type=submission.content_type,
            request_id=current_request_id(),
            traceparent=current_traceparent(),
            payload_inline=stored.blob_key is None,
        )

    def _submission_writes(
        self, stream: StreamRecord, submission: Submission, operation: Operation, stored: Stored
    ) -> list[Write]:
        writes: list[Write] = [
            Put(layout.op_item(stream.stream_id, operation.seq), operation.to_body(), 0),
            Put(
                layout.payload_item(stream.stream_id, operation.seq),
                stored_to_body(stored),
                0,
                sealed=stored.inline,
            ),
            Put(layout.pending_item(stream.stream_id, operation.seq, operation.created_ms), {}, 0),
        ]
        if submission.idempotency_key is not None:
            writes.append(
                Put(
                    layout.idempotency_item(stream.tenant, submission.idempotency_key),
                    {
                        "stream": stream.stream_id,
                        "seq": operation.seq,
                        "fingerprint": operation.fingerprint,
                    },
                    0,
                    expires_at_s=self._clock_ms() // 1000 + IDEMPOTENCY_TTL_S,
                )
            )
        return writes


def _unchanged(stream: StreamRecord) -> Check:
    """The stream's record is as it was read: not blocked, not erased since."""
    return Check(layout.stream_item(stream.stream_id, "meta"), stream.version)
