"""Where an adapter holder is: `unix:PATH` on this host, or `tcp:HOST:PORT`.

One reading for whoever listens there, publishes for it or connects to it.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import InvalidRequest

PATH_MAX_BYTES: Final = 107
"""unix(7): `sun_path` has 108 bytes, the last of them zero."""
PORT_MAX: Final = 65_535
_PORT: Final = re.compile("[0-9]{1,5}")
_NAME: Final = re.compile(r"(?!.{254})[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
"""Without a dot at its end: certificates have none, so that such a name fits to no peer."""


def parse(text: str, field: str = "holder") -> Path | tuple[str, int]:
    """A unix socket's path, or a host and a port. Raises InvalidRequest of `field`, with the form.

    >>> parse("tcp:holder.example:7443")
    ('holder.example', 7443)
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest and "\0" not in rest:
        size = len(os.fsencode(rest))
        if size > PATH_MAX_BYTES:
            raise InvalidRequest(
                f"the path of a unix socket has at most {PATH_MAX_BYTES} bytes, and this one has {size}; "
                f"name a shorter one than {rest[:200]}",
                field=field,
            )
        return Path(rest)
    host, _, port = rest.rpartition(":")
    if kind != "tcp" or not _is_host(host) or not _PORT.fullmatch(port) or not 1 <= int(port) <= PORT_MAX:
        raise InvalidRequest(
            f"an adapter holder is at unix:PATH or tcp:HOST:PORT with a port of 1 to {PORT_MAX}, not at "
            f"{text[:200]!r}",
            field=field,
        )
    return host, int(port)


def _is_host(text: str) -> bool:
    """A name, or an address without brackets."""
    with suppress(ValueError):
        ip_address(text)
        return True
    with suppress(UnicodeError):
        return _NAME.fullmatch(text.encode("idna").decode()) is not None
    return False
