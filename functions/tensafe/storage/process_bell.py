"""A bell that is heard in its own process alone: for a platform whose processes share only the stores."""

from __future__ import annotations

from tensafe.storage.unix_bell import TopicCounters


class ProcessBell:
    """The bell port on AWS, where nothing wakes another process. Implements `Bell`.

    Whoever waits for another process looks again by itself: a result's waiters after pauses that grow to
    half a second (`tensafe.api.waiting`), a worker after a second, or in the long poll of its queue.
    """

    def __init__(self) -> None:
        self._counters = TopicCounters()

    def ring(self, topic: str) -> None:
        self._counters.add(topic)

    def wait(self, topic: str, *, since: int, timeout_s: float) -> int:
        return self._counters.wait(topic, since=since, timeout_s=timeout_s)

    def count(self, topic: str) -> int:
        return self._counters.count(topic)
