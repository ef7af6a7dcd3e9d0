"""A lock between processes and threads that nobody can be starved of."""

from __future__ import annotations

import fcntl
import os
import random
import time
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import Unavailable

_FIRST_PAUSE_S: Final = 5e-5
_LONGEST_PAUSE_S: Final = 1e-3


class Busy(Unavailable):
    """Somebody else held the lock for as long as we would wait."""


class FairFileLock:
    """Two advisory locks, taken in turn: whoever waits next holds the turnstile, so the last holder
    cannot pass it again. The kernel releases both when a process dies.

    SQLite's own waiting is not fair: with four busy writers, three got nothing for two seconds. Waits
    are bounded, hence short pauses rather than a blocking call that a stopped process would hang.
    Each holder needs an object of its own; one object is not for use by two threads at once.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._turnstile_fd = os.open(path.with_name(f"{path.name}-turn"), flags, 0o600)
        self._lock_fd = os.open(path.with_name(f"{path.name}-lock"), flags, 0o600)

    def acquire(self, timeout_s: float) -> None:
        """Raises Busy after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        _take(self._turnstile_fd, deadline)
        try:
            _take(self._lock_fd, deadline)
        finally:
            fcntl.flock(self._turnstile_fd, fcntl.LOCK_UN)

    def release(self) -> None:
        fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._turnstile_fd)
        os.close(self._lock_fd)


def _take(fd: int, deadline: float) -> None:
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise Busy("the store is locked by another writer; try again") from error
            time.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 (spreads waiters, not a secret)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        else:
            return
