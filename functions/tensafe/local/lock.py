"""One supervisor per data directory, enforced by the kernel."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from tensafe.contracts.errors import ConfigurationError

_NAME: Final = "supervisor.lock"
_PATIENCE_S: Final = 1.0
"""A look at the lock by `tensafe status` holds it for microseconds; a supervisor holds it for good."""
_PAUSE_S: Final = 0.05
_MAX_BYTES: Final = 1_000_000


class DirectoryLock:
    """The right to run the processes of a data directory; held until `release` or until we die.

    Raises ConfigurationError if another supervisor holds it.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._fd = os.open(data_dir / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _PATIENCE_S
        while not _try(self._fd, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                pid = _read(self._fd).get("pid", "unknown")
                os.close(self._fd)
                raise ConfigurationError(
                    f"another supervisor (process {pid}) already serves {data_dir}; stop it first, "
                    "or choose another --data-dir"
                )
            time.sleep(_PAUSE_S)
        self.describe({})

    def describe(self, facts: Mapping[str, object]) -> None:
        """Leave a note for `tensafe status`: this process's id and `facts`."""
        data = json.dumps({"pid": os.getpid(), **facts}).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)

    def release(self) -> None:
        """Let the next supervisor in."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def running_supervisor(data_dir: Path) -> dict[str, object] | None:
    """What the supervisor of this directory noted about itself; None if none runs."""
    try:
        fd = os.open(data_dir / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try(fd, fcntl.LOCK_SH) else _read(fd)
    finally:
        os.close(fd)


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(fd: int) -> dict[str, object]:
    try:
        noted = json.loads(os.pread(fd, _MAX_BYTES, 0) or b"{}")
    except ValueError:  # being rewritten at this moment
        return {}
    return noted if isinstance(noted, dict) else {}
