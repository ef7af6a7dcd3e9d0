"""Operations that killed every worker that took them: set aside, listed, and tried again on request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from tensafe.contracts.errors import Conflict, InvalidRequest, NotFound, TensafeError
from tensafe.metrics.port import Metric, Metrics, NoMetrics
from tensafe.operations import layout
from tensafe.operations.doorbell import Doorbell
from tensafe.operations.leases import MAX_TRIES, Leases
from tensafe.operations.outcomes import DEAD_LETTER, Outcomes
from tensafe.operations.records import Failure, Operation, OpState, StreamKind, StreamRecord, StreamState
from tensafe.operations.streams import Stores, Streams, now_ms
from tensafe.operations.worker_status import WorkerStatus
from tensafe.storage.ports import (
    Check,
    ConditionFailed,
    Delete,
    Item,
    JsonValue,
    Key,
    Put,
    Queues,
    QueueSpec,
    Write,
)

log = logging.getLogger(__name__)

_CONSUME_VISIBILITY_S: Final = 60.0
_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An operation that was set aside. `letter_id` names it for `show` and `redrive`."""

    letter_id: str
    tenant: str
    stream_id: str
    seq: int
    kind: str
    cause: str
    dead_ms: int

    @classmethod
    def from_item(cls, item: Item) -> DeadLetter:
        dead_ms, rest = item.key.sort.split("/", 1)
        stream_id, seq = rest.rsplit("/", 1)
        body = item.body
        return cls(
            item.key.sort,
            str(body["tenant"]),
            stream_id,
            int(seq),
            str(body["kind"]),
            str(body["cause"]),
            int(dead_ms),
        )


class DeadLetters:
    """Buries poison operations, unblocks the others, and redrives."""

    def __init__(
        self,
        stores: Stores,
        streams: Streams,
        outcomes: Outcomes,
        leases: Leases,
        doorbell: Doorbell,
        workers: WorkerStatus,
        *,
        metrics: Metrics | None = None,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._metrics = metrics or NoMetrics()
        self._items = stores.items
        self._streams = streams
        self._outcomes = outcomes
        self._leases = leases
        self._doorbell = doorbell
        self._workers = workers
        self._clock_ms = clock_ms

    def bury(self, stream: StreamRecord, operation: Operation, cause: str) -> None:
        """Fail the operation, block a run behind it, keep a dead letter; then fail what waited.

        The fencing token changes too, so a trainer that still believes in its lease writes nothing.
        """
        failure = Failure(DEAD_LETTER, cause, "server")
        dead = layout.dead_item(self._clock_ms(), stream.stream_id, operation.seq)
        body = {"tenant": stream.tenant, "kind": operation.kind.value, "cause": cause}
        entry = layout.dead_of_stream(stream.stream_id, dead)
        writes: list[Write] = [Put(dead, dict(body), 0), Put(entry, {}, 0)]
        if stream.kind is StreamKind.RUN:
            fence_key = layout.stream_item(stream.stream_id, "fence")
            fence = self._items.get(fence_key)
            blocked = replace(stream, state=StreamState.BLOCKED, cause=_blocked_by(operation))
            writes.append(Put(fence_key, {}, fence.version if fence else 0))
            writes.append(
                Put(layout.stream_item(stream.stream_id, "meta"), blocked.to_body(), stream.version)
            )
            writes += self._leases.forgiving(stream.stream_id)
        self._outcomes.fail(stream, operation, failure, writes)
        self._metrics.add(Metric.DEAD_LETTERED, kind=operation.kind.value)
        log.error(
            "operation set aside as a dead letter",
            extra={
                "stream": stream.stream_id,
                "seq": operation.seq,
                "kind": operation.kind.value,
                "request_id": operation.request_id,
            },
        )
        if stream.kind is StreamKind.RUN:
            self.fail_waiting(stream.stream_id)

    def fail_waiting(self, stream_id: str) -> None:
        """Fail every open operation of a blocked run, with the reason; none of a run redriven meanwhile."""
        stream = self._streams.find(stream_id)
        if stream is None or stream.state is not StreamState.BLOCKED:
            return
        failure = Failure("run_blocked", stream.cause or "", "user")
        blocked = Check(layout.stream_item(stream_id, "meta"), stream.version)
        first = 0
        while page := self._outcomes.operations(stream_id, first_seq=first, limit=_PAGE):
            for operation in page:
                if not operation.state.final:
                    try:
                        self._outcomes.fail(stream, operation, failure, [blocked])
                    except ConditionFailed as error:
                        if error.index > 0:
                            return  # the run is not blocked any more
                        continue  # it was cancelled meanwhile
            first = page[-1].seq + 1

    def list(self, tenant: str | None = None, *, limit: int = 100) -> list[DeadLetter]:
        """Dead letters, oldest first; of one tenant if named."""
        found: list[DeadLetter] = []
        first = ""
        while len(found) < limit and (page := self._items.query(layout.DEAD, first=first, limit=_PAGE)):
            letters = map(DeadLetter.from_item, page)
            found += [letter for letter in letters if tenant is None or letter.tenant == tenant]
            first = layout.after(page[-1].key.sort)
        return found[:limit]

    def show(self, letter_id: str) -> DeadLetter:
        """One dead letter. Raises NotFound."""
        item = self._items.get(Key(layout.DEAD, letter_id))
        if item is None:
            raise NotFound("no such dead letter")
        return DeadLetter.from_item(item)

    def redrive(self, letter_id: str) -> DeadLetter:
        """Try the operation again: it is pending once more and its run takes operations again.

        Operations that were failed because the run was blocked stay failed; they had no effect. Raises
        NotFound, or Conflict if it is no longer failed.
        """
        letter = self.show(letter_id)
        stream = self._streams.find(letter.stream_id)
        operation = self._outcomes.peek(letter.stream_id, letter.seq)
        if stream is None or operation is None or stream.state is StreamState.ERASED:
            raise NotFound("the run of this dead letter has been erased")
        if operation.state is not OpState.FAILED:
            raise Conflict("this operation is no longer failed")
        dead = Key(layout.DEAD, letter_id)
        entry = layout.dead_of_stream(letter.stream_id, dead)
        writes: list[Write] = [Delete(dead, None), Delete(entry, None)]
        if stream.kind is StreamKind.RUN:
            active = replace(stream, state=StreamState.ACTIVE, cause=None)
            writes.append(Put(layout.stream_item(stream.stream_id, "meta"), active.to_body(), stream.version))
        try:
            self._outcomes.reopen(stream, operation, writes)
        except ConditionFailed:
            raise Conflict("the run is changing: look again, and try again") from None
        return letter

    def consume(self, queues: Queues, specs: Iterable[QueueSpec]) -> int:
        """Handle every message that the queues gave up on; how many. Idempotent, safe to kill."""
        handled = 0
        for spec in specs:
            while messages := queues.receive(
                spec.dead_queue, visibility_s=_CONSUME_VISIBILITY_S, max_messages=10
            ):
                for message in messages:
                    try:
                        self.settle_message(message.body)
                    except TensafeError:  # it alone waits; the next look is in a minute
                        log.exception("dead message not settled", extra={"queue": spec.dead_queue})
                        continue
                    queues.delete(spec.dead_queue, message.receipt)
                    handled += 1
        return handled

    def settle_message(self, body: Mapping[str, JsonValue]) -> None:
        """Handle one message that its queue gave up on, by its body. Idempotent, safe to kill."""
        named = body.get("stream")
        try:
            stream = self._streams.find(named) if isinstance(named, str) else None
        except InvalidRequest:
            stream = None
        if stream is None:
            log.warning("a message that names no stream of ours")  # nothing will ever come of it
            return
        if stream.state is StreamState.ERASED:
            return
        if stream.kind is StreamKind.SAMPLER:
            seq = body.get("seq")
            operation = self._outcomes.peek(stream.stream_id, seq) if isinstance(seq, int) else None
            if operation is None or operation.state.final or self._workers.running(operation):
                return
            if not self.bury_poison(stream, operation):
                self._doorbell.ring(stream, operation.seq)  # its samplers died of something else
            return
        self.settle(stream)

    def settle(self, stream: StreamRecord) -> None:
        """Decide about a run whose doorbell was given up: poison, or bad luck worth another ring."""
        self._doorbell.heard(stream.stream_id)  # before anything is looked at, as the letter goes after that
        if stream.state is StreamState.BLOCKED:
            self.fail_waiting(stream.stream_id)  # whoever buried the operation died before this
            return
        open_operation = self._outcomes.first_open(stream.stream_id)
        if open_operation is not None and not self.bury_poison(stream, open_operation):
            self._doorbell.send_run(stream)

    def bury_poison(self, stream: StreamRecord, operation: Operation) -> bool:
        """Bury the operation if it, or restoring its run for it, failed every try.

        While somebody runs it, or holds its run, the last try has not failed yet.
        """
        if stream.kind is StreamKind.SAMPLER:
            if operation.tries < MAX_TRIES or self._workers.running(operation):
                return False
            self.bury(stream, operation, f"{operation.tries} tries of it failed: its sampler was killed")
            return True
        claims = self._leases.claims(stream.stream_id)
        if max(claims, operation.tries) < MAX_TRIES or self._leases.held(stream.stream_id, margin_s=0):
            return False
        reason = self._leases.reason(stream.stream_id) or "its process was killed"
        tried = f"tries of this {operation.kind.value} operation"
        if operation.tries < MAX_TRIES:
            tried = f"tries to restore the run for this {operation.kind.value} operation"
        self.bury(stream, operation, f"{max(claims, operation.tries)} {tried} failed: {reason}")
        return True


def _blocked_by(operation: Operation) -> str:
    return (
        f"operation {operation.seq} ({operation.kind.value}) of this run failed every try and was set aside; "
        "redrive it (tensafe dead-letters redrive) or create a new run from the last checkpoint"
    )
