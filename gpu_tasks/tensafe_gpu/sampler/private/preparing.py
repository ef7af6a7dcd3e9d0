"""Keeps preprocessing ahead of demand, in a thread per open adapter, within a limit."""

from __future__ import annotations

import logging
import threading
from typing import Final

from tensafe_gpu.helora.ports import HeUnavailable, KeyHolder, SiteId

_LOG: Final = logging.getLogger(__name__)

LOW_WATER: Final = 1024
"""Tokens of a site below which its next block is prepared, so that at most this and a block are held."""
_PAUSE_S: Final = 1.0
"""After a failure; a forward pass that finds nothing prepared says so to its requests."""


class Preparer:
    """Prepares whatever runs low, when woken by use."""

    def __init__(self, holder: KeyHolder, *, low_water: int = LOW_WATER) -> None:
        self._holder = holder
        self._low_water = low_water
        self._spare: dict[SiteId, int] = {}
        """Tokens above the limit by the last count, less those used since."""
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prepare private adapter", daemon=True)

    def fill(self) -> None:
        """Prepare every site once, before the adapter is admitted. Raises HeUnavailable."""
        for site, left in self._holder.prepared().items():
            if left < self._low_water and not self._stopped.is_set():
                self._holder.prepare(site)
        for site, left in self._holder.prepared().items():
            self._spare[site] = left - self._low_water

    def start(self) -> None:
        self._thread.start()

    def used(self, site: SiteId, tokens: int) -> None:
        """Tokens were used; returns at once.

        Wakes the thread only when something may run low: it would compete with the forward pass, which comes
        here for every site of every step.
        """
        self._spare[site] = left = self._spare.get(site, 0) - tokens
        if left < 0:
            self._wake.set()

    def stop(self) -> None:
        """End after the block at hand."""
        self._stopped.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopped.is_set():
                return
            try:
                self.fill()
            except HeUnavailable as error:
                _LOG.warning("nothing prepared", extra={"code": error.code})
                self._stopped.wait(_PAUSE_S)
