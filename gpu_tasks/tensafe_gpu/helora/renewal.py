"""TLS contexts that follow their certificate: each new connection gets the newest that can be used."""

from __future__ import annotations

import errno
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import TensafeError
from tensafe_gpu.helora.tls import TlsFiles

log = logging.getLogger(__name__)

_TRIES: Final = 2
"""What is replaced while it is read is read again at once."""
RETRY_S: Final = 5.0
"""What could not be used is tried again so often, and at once when it was replaced: no file descriptor left,
half of a file and a store that is away say nothing about the certificate.
"""


class Renewed:
    """Called for each new connection. Thread-safe: one thread looks, the others take what there is meanwhile.

    What cannot be used (half written, of another key, not to be reached) leaves the one before in use, and
    is tried again for as long as connections come; the log says so once for each reason. The one before ends
    when it ends: its peers refuse it then. A connection that stands is never touched.
    """

    def __init__(
        self,
        mark: Callable[[], object],
        load: Callable[[], ssl.SSLContext],
        *,
        look_s: float = 0.0,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`mark` tells cheaply what there is, and `load` makes a context of it; not more often than `look_s`.

        Raises what these raise: there is nothing before the first one.
        """
        self._mark, self._load, self._clock = mark, load, clock
        self._look_s, self._retry_s = look_s, retry_s
        self._looking = threading.Lock()
        self._looked = clock()
        self._seen, self._context = self._first()
        self._failed: tuple[object, float] | None = None
        """The mark of what could not be used, and when that was tried."""
        self._reason: str | None = None
        """Why, as the log has it already."""

    def __call__(self) -> ssl.SSLContext:
        if self._looking.acquire(blocking=False):
            try:
                if self._clock() - self._looked >= self._look_s:
                    self._looked = self._clock()
                    self._look()
            finally:
                self._looking.release()
        return self._context

    def _first(self) -> tuple[object, ssl.SSLContext]:
        """What there is, and its mark; no mark if it was replaced meanwhile: the first connection looks."""
        while True:
            mark = self._mark()
            try:
                context = self._load()
            except (TensafeError, OSError):
                if self._mark() != mark:
                    continue  # one of several files
                raise
            return (mark if self._mark() == mark else None), context

    def _look(self) -> None:
        mark: object = None
        try:
            for _ in range(_TRIES):
                mark = self._mark()
                if mark == self._seen:
                    self._failed = self._reason = None
                    return
                if self._waits(mark) or self._took(mark):
                    return
        except (TensafeError, OSError) as error:
            self._not_usable(mark, error)

    def _waits(self, mark: object) -> bool:
        """Whether this very thing could not be used a moment ago."""
        return (
            self._failed is not None
            and self._failed[0] == mark
            and self._clock() - self._failed[1] < self._retry_s
        )

    def _took(self, mark: object) -> bool:
        """Whether what `mark` marks has been settled for now; not if it was replaced while it was read."""
        try:
            context = self._load()
        except (TensafeError, OSError) as error:
            if self._mark() != mark:
                return False
            self._not_usable(mark, error)
            return True
        if self._mark() != mark:
            return False
        self._context, self._seen = context, mark
        self._failed = self._reason = None
        log.info("certificate renewed")
        return True

    def _not_usable(self, mark: object, error: Exception) -> None:
        self._failed = mark, self._clock()
        reason = _reason(error)
        if reason != self._reason:
            self._reason = reason
            log.warning("a new certificate cannot be used: the one before stays", extra={"reason": reason})


def _reason(error: BaseException) -> str:
    """In a word: OpenSSL's, the system's, or which of our errors it is; no path and no content."""
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLError):
        return cause.reason or type(cause).__name__
    if isinstance(cause, OSError) and cause.errno is not None:
        return errno.errorcode.get(cause.errno, str(cause.errno))
    return error.code if isinstance(error, TensafeError) else type(error).__name__


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
