"""The sockets on which an adapter holder listens."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tensafe.contracts import holder_address
from tensafe.contracts.errors import ConfigurationError, InvalidRequest

_KEEP_ALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
_BACKLOG: Final = 1024
"""Where a flood of peers waits beside an honest one; the kernel refuses or ignores what is beyond."""
_ANSWERS_S: Final = 1.0
"""For a connection to a socket of this host, which the kernel makes without the other process."""
_BEGINS_S: Final = 10.0
"""For others that begin to listen there, each of which takes that second at most."""
_NAME_CHARACTERS: Final = 40
"""Of the socket's in that of its lock: two names that begin alike wait for each other, and no more."""


def listen_address(text: str) -> Path | tuple[str, int]:
    """A unix socket's path, or a host and a port, of what `--listen` names. Raises ConfigurationError."""
    try:
        return holder_address.parse(text)
    except InvalidRequest as error:
        raise ConfigurationError(f"--listen: {error.message}", field="listen") from error


def unix_listener(path: Path) -> socket.socket:
    """A socket that only this user can reach, in place of one that nobody serves any more.

    Raises ConfigurationError, also where something else is at `path`: that is not touched.
    """
    with _alone_at(path):
        _make_way(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            old = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(old)
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            raise _cannot(path, error) from error
    return sock


def tcp_listener(host: str, port: int) -> socket.socket:
    """A TCP socket, to be used with a TLS context alone. Raises ConfigurationError.

    Hosts that are gone without a word are found within a minute: a tenant's places are few.
    """
    try:
        sock = socket.create_server((host, port), backlog=_BACKLOG)
        for level, option, value in _KEEP_ALIVE:  # which accepted sockets inherit
            sock.setsockopt(level, option, value)
        return sock
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}", field="listen"
        ) from error


@contextmanager
def _alone_at(path: Path) -> Iterator[None]:
    """No other one looks for who serves this socket until this one listens, or has given up.

    A file beside the socket, this user's alone, is locked for as long as its process lives: on the folder
    anybody who may read it could hold the lock. Raises ConfigurationError.
    """
    beside = path.with_name(f".{path.name[:_NAME_CHARACTERS]}.lock")
    try:
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _cannot(path, error) from error
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            raise ConfigurationError(f"{beside} is another user's: name another path", field="listen")
        _locked(lock, path)
        yield
    finally:
        os.close(lock)


def _locked(lock: int, path: Path) -> None:
    until = time.monotonic() + _BEGINS_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise ConfigurationError(
                    f"cannot listen on {path}: another process that begins to listen there does not end",
                    field="listen",
                ) from error
        except OSError as error:
            raise _cannot(path, error) from error
        time.sleep(0.02)


def _cannot(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"cannot listen on {path}: {error.strerror or error}", field="listen")


def _make_way(path: Path) -> None:
    """Take away a socket whose process has ended."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot(path, error) from error
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(f"{path} is there and is no socket: name another path", field="listen")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_ANSWERS_S)
        try:
            asking.connect(str(path))
            served = True
        except OSError as error:
            served = not isinstance(error, ConnectionRefusedError)  # which alone says that nobody listens
    if served:
        raise ConfigurationError(
            f"{path} is served by another process: end it, or name another path", field="listen"
        )
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot(path, error) from error
