"""How far a new seq may lie past the highest one known: concurrent chunks arrive out of order."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

SEQ_WINDOW: Final = 10_000
_STREAMS: Final = 4096


class Window:
    """The highest seq of each stream that this process has seen: a lower bound, since a log only grows.

    What lies within the window of it can be admitted without reading the log. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._highest: OrderedDict[str, int] = OrderedDict()

    def reaches(self, stream_id: str, seq: int) -> bool:
        """Whether the seq is within the window of what has been seen; if not, the log may still admit it."""
        with self._lock:
            return seq <= self._highest.get(stream_id, -1) + SEQ_WINDOW

    def highest(self, stream_id: str) -> int | None:
        """The highest seq seen; None if none was, or if it was forgotten."""
        with self._lock:
            return self._highest.get(stream_id)

    def saw(self, stream_id: str, seq: int) -> None:
        """An operation with this seq is in the log."""
        with self._lock:
            self._highest[stream_id] = max(seq, self._highest.pop(stream_id, -1))
            if len(self._highest) > _STREAMS:
                self._highest.popitem(last=False)
