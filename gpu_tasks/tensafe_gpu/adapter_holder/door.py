"""Accepts peers, and keeps those that say nothing: one thread for all of them, and a file descriptor each."""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import time
from collections.abc import Callable
from typing import Final

from tensafe_gpu.adapter_holder.places import MAX_SILENT, Visitor, Waiting

log = logging.getLogger(__name__)

_AT_ONCE: Final = 64
"""Accepted before those that have said something have their turn."""
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_ROOM_S: Final = 0.05


class Door:
    """A listening socket and the silent peers that came by it."""

    def __init__(
        self,
        sock: socket.socket,
        patience_s: float,
        *,
        spoke: Callable[[Visitor], None],
        too_late: Callable[[Visitor], None],
        turned_away: Callable[[], None],
    ) -> None:
        """Called by the thread that serves: with whoever sent a byte, whose socket is the callee's then; with
        whoever sent none in time, and for each that had to make room: both are closed here.
        """
        self._sock, self._patience_s = sock, patience_s
        self._spoke, self._too_late, self._turned_away = spoke, too_late, turned_away
        self._silent = Waiting(MAX_SILENT)
        self._closed = False

    def serve_forever(self) -> None:
        """Accept until `close`. Raises OSError if the listening socket fails."""
        self._sock.setblocking(False)
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(self._sock, selectors.EVENT_READ)
                while not self._closed:
                    self._take_turns(ready)
        finally:
            self._sock.close()
            while (visitor := self._silent.turn_away()) is not None:
                visitor.sock.close()

    def close(self) -> None:
        """Accept no more; `serve_forever` closes what is silent."""
        self._closed = True
        try:
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes it
        except OSError:
            self._sock.close()

    def _take_turns(self, ready: selectors.BaseSelector) -> None:
        oldest = self._silent.oldest()
        wait_s = None if oldest is None else max(0.0, oldest.deadline - time.monotonic())
        for key, _ in ready.select(wait_s):
            if key.data is not None and self._silent.leave(key.data):
                ready.unregister(key.data.sock)
                self._said_something(key.data)
        self._end_overdue(ready)
        for _ in range(_AT_ONCE):
            if not self._accepted(ready):
                break

    def _said_something(self, visitor: Visitor) -> None:
        try:
            gone = visitor.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except OSError:
            gone = True
        if gone:
            visitor.sock.close()
        else:
            self._spoke(visitor)

    def _end_overdue(self, ready: selectors.BaseSelector) -> None:
        now = time.monotonic()
        while (oldest := self._silent.oldest()) is not None and oldest.deadline <= now:
            self._silent.leave(oldest)
            self._too_late(oldest)
            self._end(ready, oldest)

    def _accepted(self, ready: selectors.BaseSelector) -> bool:
        """Whether there may be another one."""
        try:
            peer, address = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            if self._closed:
                return False
            if error.errno not in _NO_ROOM:
                raise
            log.warning("no room for another peer", extra={"errno": error.errno})
            if not self._turn_away(ready, self._silent.turn_away()):
                time.sleep(_NO_ROOM_S)
            return False
        source = "" if self._sock.family == socket.AF_UNIX else str(address[0])
        visitor = Visitor(peer, source, time.monotonic() + self._patience_s)
        self._turn_away(ready, self._silent.enter(visitor))
        ready.register(peer, selectors.EVENT_READ, visitor)
        return True

    def _turn_away(self, ready: selectors.BaseSelector, visitor: Visitor | None) -> bool:
        if visitor is None:
            return False
        self._turned_away()
        self._end(ready, visitor)
        return True

    def _end(self, ready: selectors.BaseSelector, visitor: Visitor) -> None:
        ready.unregister(visitor.sock)
        visitor.sock.close()
