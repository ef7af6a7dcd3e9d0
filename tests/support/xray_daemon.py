"""X-Ray's daemon as far as a function sees it: a socket that datagrams are sent to."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

HEADER = b'{"format":"json","version":1}\n'
Subsegment = dict[str, Any]


class XrayDaemon:
    """Keeps what it was sent."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.datagrams: list[bytes] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def received(self) -> list[Subsegment]:
        """All subsegments until now, those within others too."""
        while True:
            try:
                self.datagrams.append(self._socket.recv(2**16))
            except BlockingIOError:
                break
        found: list[Subsegment] = []
        waiting = [json.loads(one.removeprefix(HEADER)) for one in self.datagrams]
        while waiting:
            one = waiting.pop(0)
            below = one.pop("subsegments", ())
            waiting += [{"trace_id": one["trace_id"], "parent_id": one["id"], **child} for child in below]
            found.append(one)
        return found

    def when(self, enough: Callable[[list[Subsegment]], bool], timeout_s: float = 5.0) -> list[Subsegment]:
        """What is there once it is `enough`; AssertionError if it never is."""
        deadline = time.monotonic() + timeout_s
        while not enough(found := self.received()):
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        return found

    def close(self) -> None:
        self._socket.close()
