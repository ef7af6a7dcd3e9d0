"""Queues in lists."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tensafe.contracts.errors import InvalidRequest
from tensafe.storage.checks import (
    DEDUP_WINDOW_S,
    check_receive,
    check_send,
    check_visibility,
    declared_queues,
    decode_body,
)
from tensafe.storage.ports import (
    VISIBILITY_MAX_S,
    Bell,
    JsonValue,
    Message,
    QueueSpec,
    StaleReceipt,
)
from tests.fakes.bell import MemoryBell


@dataclass
class _Waiting:
    order: int
    text: str
    group: str | None
    ready_at: float
    receives: int = 0
    receipt: str | None = None
    received_at: float = 0.0


class MemoryQueues:
    """Implements `Queues`; `clock` gives Unix seconds and may be moved by a test."""

    def __init__(
        self,
        specs: Sequence[QueueSpec],
        bell: Bell | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._declared_queues = declared_queues(specs)
        self._bell = bell or MemoryBell()
        self._clock = clock
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._queues: dict[str, list[_Waiting]] = {name: [] for name in self._declared_queues}
        self._seen: dict[tuple[str, str], float] = {}

    def send(
        self,
        queue: str,
        body: Mapping[str, JsonValue],
        *,
        group: str | None = None,
        dedup_id: str | None = None,
        delay_s: float = 0.0,
    ) -> None:
        spec, _ = self._declared(queue)
        text = check_send(spec, body, group=group, dedup_id=dedup_id, delay_s=delay_s)
        with self._lock:
            now = self._clock()
            if dedup_id is not None:
                if now - self._seen.get((queue, dedup_id), float("-inf")) < DEDUP_WINDOW_S:
                    return
                self._seen[queue, dedup_id] = now
            self._queues[queue].append(_Waiting(next(self._order), text, group, now + delay_s))
        self._bell.ring(f"queue/{queue}")

    def receive(
        self, queue: str, *, visibility_s: float, max_messages: int = 1, wait_s: float = 0.0
    ) -> list[Message]:
        self._declared(queue)
        check_receive(visibility_s=visibility_s, max_messages=max_messages, wait_s=wait_s)
        deadline = time.monotonic() + wait_s
        while True:
            heard = self._bell.count(f"queue/{queue}")
            messages = self._receive_now(queue, visibility_s, max_messages)
            left_s = deadline - time.monotonic()
            if messages or left_s <= 0:
                return messages
            self._bell.wait(f"queue/{queue}", since=heard, timeout_s=min(left_s, 0.02))

    def extend(self, queue: str, receipt: str, visibility_s: float) -> None:
        self._declared(queue)
        check_visibility(visibility_s)
        with self._lock:
            held = self._held(queue, receipt)
            if held is None or held.ready_at <= self._clock():
                raise StaleReceipt("no longer held")
            held.ready_at = min(self._clock() + visibility_s, held.received_at + VISIBILITY_MAX_S)
        self._bell.ring(f"queue/{queue}")

    def delete(self, queue: str, receipt: str) -> None:
        self._declared(queue)
        with self._lock:
            held = self._held(queue, receipt)
            if held is not None:
                self._queues[queue].remove(held)
        self._bell.ring(f"queue/{queue}")

    def depth(self, queue: str) -> int:
        self._declared(queue)
        with self._lock:
            return len(self._queues[queue])

    def redrive(self, queue: str, *, max_messages: int = 100) -> int:
        spec, is_dead = self._declared(queue)
        if is_dead:
            raise InvalidRequest(f"{queue!r} is a dead queue", field="queue")
        with self._lock:
            moved = 0
            while moved < max_messages and (ready := self._ready(spec.dead_queue)):
                self._move(ready[0], spec.dead_queue, queue)
                moved += 1
        self._bell.ring(f"queue/{queue}")
        return moved

    def _receive_now(self, queue: str, visibility_s: float, max_messages: int) -> list[Message]:
        spec, is_dead = self._declared(queue)
        messages: list[Message] = []
        with self._lock:
            while len(messages) < max_messages and (ready := self._ready(queue)):
                waiting = ready[0]
                if not is_dead and waiting.receives >= spec.max_receives:
                    self._move(waiting, queue, spec.dead_queue)
                    self._bell.ring(f"queue/{spec.dead_queue}")
                    continue
                waiting.receives += 1
                waiting.receipt = secrets.token_hex(16)
                waiting.received_at = self._clock()
                waiting.ready_at = waiting.received_at + visibility_s
                messages.append(
                    Message(
                        queue, decode_body(waiting.text), waiting.receipt, waiting.receives, waiting.group
                    )
                )
        return messages

    def _ready(self, queue: str) -> list[_Waiting]:
        """What can be received: of each group its oldest message alone, if that is not in flight."""
        now, groups, ready = self._clock(), set(), []
        for waiting in sorted(self._queues[queue], key=lambda one: one.order):
            if waiting.group is not None and waiting.group in groups:
                continue
            groups.add(waiting.group)
            if waiting.ready_at <= now:
                ready.append(waiting)
        return ready

    def _move(self, waiting: _Waiting, source: str, target: str) -> None:
        self._queues[source].remove(waiting)
        moved = _Waiting(next(self._order), waiting.text, waiting.group, self._clock())
        self._queues[target].append(moved)

    def _held(self, queue: str, receipt: str) -> _Waiting | None:
        return next((one for one in self._queues[queue] if one.receipt == receipt), None)

    def _declared(self, queue: str) -> tuple[QueueSpec, bool]:
        if queue not in self._declared_queues:
            raise InvalidRequest(f"no such queue: {queue!r}", field="queue")
        return self._declared_queues[queue]
