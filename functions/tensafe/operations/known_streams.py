"""Records of streams that this process has read, for whoever submits to them: one read less each time.

Nothing is decided by them. A submission's transaction demands that the record still is the version that is
here, and whatever says no reads it anew: a run that was blocked, closed or erased meanwhile, in whichever
process, takes nothing. What else is asked of them never changes: tenant, kind, base model, adapter,
optimizer.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tensafe.operations.records import StreamRecord, StreamState

KNOWN_S: Final = 60.0
KNOWN_MAX: Final = 2048
_NOT_KEPT: Final = "user_metadata"
"""32 KiB at most, and nothing of it is asked for in a submission."""


class KnownStreams:
    """Active streams by id, for KNOWN_S each and KNOWN_MAX at once. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, StreamRecord]] = OrderedDict()

    def find(self, stream_id: str) -> StreamRecord | None:
        """The record without what its user keeps with it; whose it is must be looked at."""
        with self._lock:
            self._drop_old()
            found = self._kept.get(stream_id)
            return found[1] if found else None

    def keep(self, record: StreamRecord) -> None:
        """Keep what has just been read, unless nothing can be submitted to it."""
        slim = replace(record, spec={name: value for name, value in record.spec.items() if name != _NOT_KEPT})
        with self._lock:
            self._kept.pop(record.stream_id, None)
            if record.state is StreamState.ACTIVE:
                self._kept[record.stream_id] = (self._clock(), slim)
            self._drop_old()

    def forget(self, stream_id: str) -> None:
        """It has changed, or may have."""
        with self._lock:
            self._kept.pop(stream_id, None)

    def _drop_old(self) -> None:
        """Those that were kept first stand first."""
        oldest = self._clock() - KNOWN_S
        while self._kept:
            kept_s = next(iter(self._kept.values()))[0]
            if kept_s > oldest and len(self._kept) <= KNOWN_MAX:
                return
            self._kept.popitem(last=False)
