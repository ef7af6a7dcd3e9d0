"""What is held in clear for a while is dropped in time, though nobody asks for it again.

One thread in each process looks at every holder every few seconds; a holder that is garbage is not
looked at any more.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import Final, Protocol

log = logging.getLogger(__name__)

TICK_S: Final = 5.0


class Holder(Protocol):
    """Holds something in clear."""

    def forget_stale(self) -> None:
        """Drop what has been held for long enough."""


class Watch:
    """Makes holders forget, every `tick_s` seconds."""

    def __init__(self, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # the thread is not there, and its lock may be taken

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._holders: weakref.WeakSet[Holder] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def add(self, holder: Holder) -> None:
        """Look at it from now on. Adding it again is free."""
        with self._lock:
            self._holders.add(holder)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="forgetting", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(self._tick_s)
            self._look()

    def _look(self) -> None:
        """A call of its own, so that nothing here keeps a holder alive in between."""
        with self._lock:
            holders = list(self._holders)
        for holder in holders:
            try:
                holder.forget_stale()
            except Exception:  # the others must forget too, and this one is asked again
                log.exception("not forgotten yet")


WATCH: Final = Watch()
