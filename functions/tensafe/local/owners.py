"""The process incarnations that a supervisor has started: found and ended after it was killed itself."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

import psutil

from tensafe.local.process import OWNER_VARIABLE

log = logging.getLogger(__name__)

_FILE: Final = "owners"
_KILL_WAIT_S: Final = 10.0


class Owners:
    """One owner name per line, written before its process starts. For the holder of the directory lock."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _FILE

    def add(self, owner: str) -> None:
        """Remember an owner before its process exists. Raises OSError unless all of its name was written."""
        line = f"\n{owner}\n".encode()  # a full disk may have left the line before without its end
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        finally:
            os.close(fd)

    def all(self) -> list[str]:
        """Those that were not settled."""
        try:
            return self._path.read_text().split()
        except FileNotFoundError:
            return []

    def settle(self, owner: str) -> None:
        """This one is dead and what it held has been freed."""
        left = [name for name in self.all() if name != owner]
        aside = self._path.with_suffix(".new")
        aside.write_text("".join(f"{name}\n" for name in left))
        aside.replace(self._path)


def kill_processes_of(owners: Collection[str]) -> int:
    """SIGKILL every process whose environment names one of the owners; how many. Waits for their end.

    Finds what a killed process group leaves: children in sessions of their own. An owner's name is
    random, so nothing else can carry it.
    """
    if not owners:
        return 0
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(OWNER_VARIABLE) in owners:
                process.kill()
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
    _, alive = psutil.wait_procs(found, timeout=_KILL_WAIT_S)
    if found:
        log.warning("left-over processes killed", extra={"count": len(found), "still_there": len(alive)})
    return len(found)
