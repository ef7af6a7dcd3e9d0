"""Whether two processes of this host have one core between them."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

_CREDENTIALS: Final = struct.Struct("=iII")
"""struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)."""


def on_one_core(sock: socket.socket) -> bool:
    """Whether the peer of a unix socket and this thread may run on one and the same core alone.

    Then what this thread does while it waits keeps the peer from answering. Not known, as for a peer in
    another PID namespace, is no.
    """
    if sock.family != socket.AF_UNIX:
        return False
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        peer = _CREDENTIALS.unpack(credentials)[0]
        return peer > 0 and len(os.sched_getaffinity(0) | os.sched_getaffinity(peer)) == 1
    except OSError:
        return False
