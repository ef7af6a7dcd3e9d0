"""The sockets on which an adapter holder listens."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError

_KEEP_ALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
_PATH_MAX_BYTES: Final = 107
"""unix(7): `sun_path` has 108 bytes, the last of them zero."""
_PORT: Final = re.compile("[0-9]{1,5}")
_PORT_MAX: Final = 65_535
_BACKLOG: Final = 1024
"""Where a flood of peers waits beside an honest one; the kernel refuses or ignores what is beyond."""
_ANSWERS_S: Final = 1.0
"""For a connection to a socket of this host, which the kernel makes without the other process."""


def listen_address(text: str) -> Path | tuple[str, int]:
    """A unix socket's path, or a host and a port, of what `--listen` names. Raises ConfigurationError."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        size = len(os.fsencode(rest))
        if size > _PATH_MAX_BYTES:
            raise ConfigurationError(
                f"cannot listen on {rest[:200]}: the path of a unix socket has at most {_PATH_MAX_BYTES} "
                f"bytes, and this one has {size}; name a shorter one",
                field="listen",
            )
        return Path(rest)
    host, _, port = rest.rpartition(":")
    if kind != "tcp" or not host or not _PORT.fullmatch(port) or not 1 <= int(port) <= _PORT_MAX:
        raise ConfigurationError(
            f"--listen is unix:PATH or tcp:HOST:PORT with a port of 1 to {_PORT_MAX}, not {text[:200]!r}",
            field="listen",
        )
    return host, int(port)


def unix_listener(path: Path) -> socket.socket:
    """A socket that only this user can reach, in place of one that nobody serves any more.

    Raises ConfigurationError, also where something else is at `path`: that is not touched.
    """
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
        raise ConfigurationError(
            f"cannot listen on {path}: {error.strerror or error}", field="listen"
        ) from error
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


def _make_way(path: Path) -> None:
    """Take away a socket whose process has ended."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {path}: {error.strerror}", field="listen") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(f"{path} is there and is no socket: name another path", field="listen")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_ANSWERS_S)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:  # of all errors the one that says that nobody listens
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise ConfigurationError(
        f"{path} is served by another process: end it, or name another path", field="listen"
    )
