"""TLS contexts that follow their certificate: each new connection gets the newest that can be used."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError, TensafeError
from tensafe_gpu.helora.tls import TlsFiles

log = logging.getLogger(__name__)

_TRIES: Final = 2
"""What is replaced while it is read is read again at once."""


class Renewed:
    """Called for each new connection. Thread-safe: one thread looks, the others take what there is meanwhile.

    What cannot be used (half written, of another key, not to be reached) leaves the one before in use. A
    connection that stands is never touched.
    """

    def __init__(
        self,
        mark: Callable[[], object],
        load: Callable[[], ssl.SSLContext],
        *,
        look_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`mark` tells cheaply what there is, and `load` makes a context of it; not more often than `look_s`.

        Raises what these raise: there is nothing before the first one.
        """
        self._mark, self._load, self._look_s, self._clock = mark, load, look_s, clock
        self._looking = threading.Lock()
        self._looked = clock()
        self._seen = mark()
        self._context = load()
        if mark() != self._seen:
            self._seen = None  # replaced meanwhile: the first connection looks again

    def __call__(self) -> ssl.SSLContext:
        if self._looking.acquire(blocking=False):
            try:
                if self._clock() - self._looked >= self._look_s:
                    self._looked = self._clock()
                    self._look()
            finally:
                self._looking.release()
        return self._context

    def _look(self) -> None:
        try:
            for _ in range(_TRIES):
                mark = self._mark()
                if mark == self._seen or self._took(mark):
                    return
        except (TensafeError, OSError) as error:
            log.warning("certificate not looked at", extra={"error": type(error).__name__})

    def _took(self, mark: object) -> bool:
        """Whether what `mark` marks has been settled; not if it was replaced while it was read."""
        try:
            context = self._load()
        except ConfigurationError:
            if self._mark() != mark:
                return False
            log.warning("a new certificate cannot be used: the one before stays")
            self._seen = mark
            return True
        if self._mark() != mark:
            return False
        self._context, self._seen = context, mark
        log.info("certificate renewed")
        return True


def of_files(files: TlsFiles, make: Callable[[TlsFiles], ssl.SSLContext]) -> Renewed:
    """Of PEM files that somebody replaces in place. Raises ConfigurationError for the first ones."""
    return Renewed(
        lambda: tuple(_mark(path) for path in (files.certificate, files.key, files.authority)),
        lambda: make(files),
    )


def _mark(path: Path) -> tuple[int, ...] | None:
    """Another one for every file that was written in this one's place."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
