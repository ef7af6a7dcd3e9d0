"""Rings again for what has waited too long, so that a lost message costs seconds and never work."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Final, cast

from tensafe.contracts.errors import TensafeError, Unavailable
from tensafe.operations import layout
from tensafe.operations.doorbell import Doorbell, queue_of
from tensafe.operations.leases import Leases
from tensafe.operations.outcomes import Outcomes
from tensafe.operations.records import Operation, StreamKind, StreamRecord, StreamState
from tensafe.operations.streams import Stores, Streams, now_ms
from tensafe.operations.worker_status import WorkerStatus
from tensafe.storage.ports import ConditionFailed, Delete, Item, JsonValue, Put

log = logging.getLogger(__name__)

_PAGE: Final = 200
_LONGEST_WAIT_MS: Final = 600_000
_START: Final = ("", "")
"""Before the first marker of the first shard."""


class Sweeper:
    """One pass reads the markers that are older than the limit, and looks once at each run.

    A reminder is one more message, and a queue with a backlog has no room for many: what still waits is
    reminded of when its age has doubled, and what a live worker runs is not reminded of. While there is no
    worker to hear it, nothing is, for as long as its queue has messages: scaling counts them, and would
    start workers for reminders.
    """

    def __init__(
        self,
        stores: Stores,
        streams: Streams,
        outcomes: Outcomes,
        leases: Leases,
        doorbell: Doorbell,
        workers: WorkerStatus,
        *,
        stale_s: float = 15.0,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._items = stores.items
        self._streams = streams
        self._outcomes = outcomes
        self._leases = leases
        self._doorbell = doorbell
        self._workers = workers
        self._stale_ms = int(stale_s * 1000)
        self._clock_ms = clock_ms
        self._clock_s = time.monotonic
        self._failed = 0
        self._next = _START

    def sweep(self, *, limit_s: float = math.inf) -> int:
        """Ring for every stream with an open operation older than the limit; how many rings.

        One that cannot be rung for, because its base model is not served now, say, is passed over. A pass
        looks at no more markers once it has taken `limit_s`: the next one of this process goes on there,
        and comes round to what it passes over.
        """
        deadline_s = self._clock_s() + limit_s
        seen: set[str] = set()
        audience = _Audience(self._workers, self._doorbell)
        rings = failed = 0
        began, self._next = self._next, _START
        for marker in self._markers(self._clock_ms() - self._stale_ms, began):
            if self._clock_s() >= deadline_s:
                self._next = marker.key.partition, marker.key.sort
                log.warning("not all open operations were looked at: the next sweep goes on")
                break
            try:
                rings += self._look_at(marker, seen, audience)
            except TensafeError:
                failed += 1
        if failed != self._failed:
            log.warning("open operations that could not be rung for", extra={"count": failed})
        self._failed = failed
        return rings

    def forgive(self, owner: str) -> int:
        """Count no try against what a dead worker ran, since its death was nobody's fault; how many.

        Idempotent. Looks at every open operation: for the rare moments when a supervisor begins or ends.
        """
        forgiven = 0
        for marker in self._markers(self._clock_ms()):
            stream_id, seq = _named(marker)
            operation = self._outcomes.peek(stream_id, seq)
            if operation is not None and operation.owner == owner and not operation.state.final:
                forgiven += self._outcomes.put_back(operation, counted=False)
        return forgiven

    def _markers(self, until_ms: int, start: tuple[str, str] = _START) -> Iterator[Item]:
        """All that are as old, once round the shards from the marker of `start`."""
        last, (shard, sort) = f"{until_ms:015d}~", start
        shards = layout.pending_shards()
        place = shards.index(shard) if shard in shards else 0
        yield from self._of_shard(shards[place], sort, last)
        for other in shards[place + 1 :] + shards[:place]:
            yield from self._of_shard(other, "", last)
        if sort:
            for marker in self._of_shard(shards[place], "", last):
                if marker.key.sort >= sort:
                    return
                yield marker

    def _of_shard(self, shard: str, first: str, last: str) -> Iterator[Item]:
        while page := self._items.query(shard, first=first, last=last, limit=_PAGE):
            yield from page
            first = layout.after(page[-1].key.sort)

    def _look_at(self, marker: Item, seen: set[str], audience: _Audience) -> int:
        """Rings for one marker; `seen` are the runs that need no second look in this pass."""
        stream_id, seq = _named(marker)
        if stream_id in seen:
            return 0
        overdue_ms = self._clock_ms() - _due_ms(marker)
        if overdue_ms < 0:
            if marker.body.get("run"):
                seen.add(stream_id)  # it was reminded of as a whole
            return 0
        stream = self._streams.find(stream_id)
        operation = self._outcomes.peek(stream_id, seq)
        ended = operation is None or operation.state.final
        if stream is None or operation is None or ended or stream.state is StreamState.ERASED:
            self._items.write([Delete(marker.key, None)])
            return 0
        if stream.kind is StreamKind.RUN:
            seen.add(stream_id)
        if self._is_held(stream, operation):
            return 0
        if overdue_ms < _LONGEST_WAIT_MS and not audience.hears(stream):
            return 0
        self._doorbell.remind(stream, operation.seq)
        self._postpone(marker, stream)
        return 1

    def _is_held(self, stream: StreamRecord, operation: Operation) -> bool:
        if stream.kind is StreamKind.RUN:
            return self._leases.held(stream.stream_id, margin_s=0)
        return self._workers.running(operation)

    def _postpone(self, marker: Item, stream: StreamRecord) -> None:
        now = self._clock_ms()
        wait_ms = min(max(now - _created_ms(marker), 60_000), _LONGEST_WAIT_MS)
        body: dict[str, JsonValue] = {"remind_ms": now + wait_ms}
        if stream.kind is StreamKind.RUN:
            body["run"] = True
        try:
            self._items.write([Put(marker.key, body, marker.version)])
        except ConditionFailed:
            return  # it has ended


class _Audience:
    """Who hears a reminder, as far as one pass knows."""

    def __init__(self, workers: WorkerStatus, doorbell: Doorbell) -> None:
        self._workers = workers
        self._doorbell = doorbell
        self._alive: set[tuple[str, str]] | None = None
        self._rung: dict[str, bool] = {}

    def hears(self, stream: StreamRecord) -> bool:
        """Whether a worker of the stream's lives, or its queue has nothing that would start one."""
        if self._alive is None:
            self._alive = {(report.role, report.base_model) for report in self._workers.list()}
        role = "trainer" if stream.kind is StreamKind.RUN else "sampler"
        if (role, stream.base_model) in self._alive:
            return True
        queue = queue_of(stream)
        if queue not in self._rung:
            self._rung[queue] = self._has_rung(queue)
        return not self._rung[queue]

    def _has_rung(self, queue: str) -> bool:
        try:
            return self._doorbell.depth(queue) > 0
        except Unavailable:
            return False  # one reminder too many is better than none


def _created_ms(marker: Item) -> int:
    return int(marker.key.sort.split("/", 1)[0])


def _due_ms(marker: Item) -> int:
    """When to remind of it."""
    return cast(int, marker.body.get("remind_ms") or _created_ms(marker))


def _named(marker: Item) -> tuple[str, int]:
    stream_id, seq = marker.key.sort.split("/", 1)[1].rsplit("/", 1)
    return stream_id, int(seq)
