"""A private directory in memory for plaintext that another library insists on reading from a path.

It lies on tmpfs or ramfs (checked with statfs), belongs to this process alone (mode 0700, random
name) and is removed by its owner. If the owner was killed, the next process to start removes it: each
directory has a lock file beside it, and a lock that can be taken has no living owner. A lock, unlike
a process id, also tells the truth between containers that share /dev/shm.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError

_LOG: Final = logging.getLogger(__name__)

DEFAULT_ROOT: Final = Path("/dev/shm")  # noqa: S108 - the type of file system is verified below
_PREFIX: Final = "tensafe-sampler-"
_TMPFS_MAGIC: Final = 0x01021994
_RAMFS_MAGIC: Final = 0x858458F6
_STATFS_BYTES: Final = 512


def require_memory_backed(directory: Path) -> None:
    """Raise ConfigurationError unless `directory` lies on tmpfs or ramfs."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if libc.statfs(os.fsencode(directory), buffer) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise ConfigurationError(f"{directory} cannot be used for adapters: {reason}", field="private_root")
    # f_type is the first word of struct statfs on every 64-bit Linux.
    file_system = ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
    if file_system not in (_TMPFS_MAGIC, _RAMFS_MAGIC):
        raise ConfigurationError(
            f"{directory} is not in memory (file system {file_system:#x}); plaintext adapters need tmpfs",
            field="private_root",
        )


class PrivateDirectory:
    """This process's directory below `root`; `close` removes it with everything in it."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        """Sweep what dead processes left, then create the directory. Raises ConfigurationError."""
        require_memory_backed(root)
        _sweep(root)
        self.path, self._lock_path, self._lock_fd = _create(root)

    def write(self, files: Mapping[str, bytes]) -> Path:
        """Write `files` (plain names) into a new sub-directory of mode 0700 and return it."""
        directory = self.path / secrets.token_hex(16)
        directory.mkdir(mode=0o700)
        try:
            for name, content in files.items():
                if Path(name).name != name:
                    raise ValueError("a file name must not contain a path")
                _write_new(directory / name, content)
        except BaseException:
            self.remove(directory)
            raise
        return directory

    def lead(self, name: str, directory: Path) -> Path:
        """A path that leads to a sub-directory that `write` returned, from now on and all at once."""
        link, fresh = self.path / name, self.path / secrets.token_hex(16)
        fresh.symlink_to(directory.name)
        os.replace(fresh, link)
        return link

    def remove(self, directory: Path) -> None:
        """Delete a sub-directory that `write` returned; absent is fine."""
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            _LOG.error("plaintext adapter files could not be removed", extra={"directory": directory.name})

    def close(self) -> None:
        """Remove everything and give the lock back; calling it twice is fine."""
        if self._lock_fd < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock_fd)
        self._lock_fd = -1


def _write_new(path: Path, content: bytes) -> None:
    """Create `path` with mode 0600, never following or replacing anything."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)


def _create(root: Path) -> tuple[Path, Path, int]:
    """Make a locked directory; returns it, its lock file and the descriptor that holds the lock."""
    while True:
        path = root / f"{_PREFIX}{secrets.token_hex(8)}"
        lock_path = path.with_suffix(".lock")
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # A sweeper may have taken the lock between our open and our flock, and unlinked the file.
            if os.fstat(descriptor).st_nlink == 1:
                path.mkdir(mode=0o700)
                return path, lock_path, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove the directories of this user whose owner has died."""
    for lock_path in root.glob(f"{_PREFIX}*.lock"):
        try:
            descriptor = os.open(lock_path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or removed meanwhile
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_uid == os.geteuid():
                shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                lock_path.unlink(missing_ok=True)
                _LOG.warning("removed the adapter files of a dead process", extra={"lock": lock_path.name})
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(descriptor)
