"""Keeps preprocessing ahead of demand, in a thread per open adapter, within a limit."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from tensafe_gpu.helora.ports import GARBAGE, NOT_PREPARED, HeUnavailable, KeyHolder, SiteId

_LOG: Final = logging.getLogger(__name__)

LOW_WATER: Final = 1024
"""Tokens of a site below which its next block is prepared, so that at most this and a block are held."""
BLOCK_S: Final = 20.0
"""Longest wait for a block; a forward pass that waits keeps everybody's waiting."""
_PAUSE_S: Final = 1.0
"""After a failure; a forward pass that finds nothing prepared says so to its requests."""


class Preparer:
    """Prepares whatever runs low, when woken by use."""

    def __init__(self, holder: KeyHolder, *, low_water: int = LOW_WATER) -> None:
        self._holder = holder
        self._low_water = low_water
        self._spare: dict[SiteId, int] = {}
        """Tokens above the limit by the last count, less those used since."""
        self._urgent: SiteId | None = None
        self._target = low_water
        self._failure: HeUnavailable | None = None
        """Of the last block, until another one is made or wanted."""
        self._failures = 0
        self._last_code: str | None = None
        self._progress = threading.Condition()
        self.made = 0
        """Blocks prepared so far."""
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prepare private adapter", daemon=True)

    def fill(self) -> None:
        """A block for every site that runs low; at first these are all. Raises HeUnavailable."""
        with self._progress:
            target, self._target = self._target, self._low_water
        low = [site for site, left in self._holder.prepared().items() if left < target]
        while not self._stopped.is_set():
            with self._progress:  # a wish that came in between would be forgotten, and a pass waits for it
                urgent, self._urgent = self._urgent, None
            site = urgent or next(iter(low), None)
            if site is None:
                break
            if site in low:
                low.remove(site)
            self._holder.prepare(site)
            with self._progress:
                self.made += 1
                self._failure = None
                self._progress.notify_all()
        for site, left in self._holder.prepared().items():
            self._spare[site] = left - self._low_water

    def missing(self, tokens: int) -> int:
        """How many tokens some site still lacks of so many, at most a block; the thread sees to it.

        If that fails, `failed` says so, and the next one who asks has it tried again.
        """
        least = min(self._holder.prepared().values())
        if least >= tokens:
            return 0
        with self._progress:
            self._target = max(self._target, tokens)
            self._wake.set()
        return tokens - least

    def failed(self) -> tuple[int, str | None]:
        """How often a block was not made, and the code of the last one that was not."""
        with self._progress:
            return self._failures, self._last_code

    def want(self, site: SiteId) -> None:
        """Prepare a block of a site ahead of all others."""
        with self._progress:
            self._failure, self._urgent = None, site
            self._wake.set()

    def wait(self, site: SiteId, tokens: int, wait_s: float) -> None:
        """Until so many tokens of a site are prepared, which was wanted; at most a block of them.

        Raises HeUnavailable: what kept the thread from it, or `not_prepared` after `wait_s`, however long the
        adapter holder may take.
        """
        deadline = time.monotonic() + wait_s
        with self._progress:
            while self._holder.prepared()[site] < tokens:
                if self._failure is not None:
                    raise self._failure
                if not self._progress.wait(deadline - time.monotonic()):
                    raise HeUnavailable(NOT_PREPARED, "preprocessing did not keep up")

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
        """End after the block at hand, also where `fill` runs in another thread and none was started."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopped.is_set():
                return
            try:
                self.fill()
            except Exception as error:  # noqa: BLE001 - the thread lives on, whatever a holder answers
                failure = error if isinstance(error, HeUnavailable) else HeUnavailable(GARBAGE, "no block")
                _LOG.warning("nothing prepared", extra={"code": failure.code, "error": type(error).__name__})
                with self._progress:
                    self._failure, self._last_code = failure, failure.code
                    self._failures += 1
                    self._progress.notify_all()
                self._stopped.wait(_PAUSE_S)
