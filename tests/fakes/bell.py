"""A bell within one process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable


class MemoryBell:
    """Implements `Bell`, and `subscribe` as `UnixBell` does."""

    def __init__(self) -> None:
        self._rings: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._listeners: list[Callable[[str], None]] = []

    def ring(self, topic: str) -> None:
        with self._changed:
            self._rings[topic] += 1
            self._changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener(topic)

    def wait(self, topic: str, *, since: int, timeout_s: float) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._rings[topic] > since, timeout_s)
            return self._rings[topic]

    def count(self, topic: str) -> int:
        with self._changed:
            return self._rings[topic]

    def subscribe(self, listener: Callable[[str], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
