"""Requests on several connections at once: each goes on as its socket lets it, and none waits for another."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Final

from tensafe_gpu.helora.frames import (
    HEADER,
    Frame,
    Kind,
    PeerGone,
    PeerSlow,
    frame_pieces,
    parse_header,
    room,
)
from tensafe_gpu.helora.ports import Asked

POLL_S: Final = 0.0008
"""How long answers are looked for before their thread sleeps: the forward pass stands still meanwhile, and an
adapter holder on this host has mostly answered by then. The core is not yielded between two looks: where
threads of the engine share it, those would have their time first. Who has no other core than the adapter
holder sleeps at once (cores.py).
"""
_STEPS: Final = 64
"""Reads or writes of one exchange before the others have a turn."""


class Exchange:
    """A request and its answer. Not for several threads at once.

    The sending, the answer's beginning and the rest of it have `timeout_s` each, whatever the others do, and
    all of it together has `limit_s`. Both count from here, or from `waited_for`.
    """

    def __init__(
        self,
        sock: socket.socket,
        kind: Kind,
        request: int,
        parts: Sequence[bytes | memoryview],
        limits: Mapping[Kind, int],
        timeout_s: float,
        limit_s: float = inf,
        poll_s: float = POLL_S,
    ) -> None:
        """Nothing is sent before `advance`; `limits` are those of the answer, `poll_s` is how long that is
        looked for before a thread sleeps.
        """
        self._sock, self._limits, self._timeout_s = sock, limits, timeout_s
        self.poll_s = poll_s
        self._out = deque(frame_pieces(kind, request, parts))
        self._header = bytearray(HEADER.size)
        self._into = memoryview(self._header)
        self._begun: Frame | None = None
        self._answer: Frame | None = None
        self._error: Exception | None = None
        self._wanted = select.POLLOUT
        self._began = time.monotonic()
        self._until = self._began + limit_s
        self._deadline = min(self._began + timeout_s, self._until)
        self.took_s = 0.0
        """Seconds from here, or from `waited_for`, to the end of the answer, once that is there."""
        if sock.gettimeout() != 0:
            sock.setblocking(False)

    def waited_for(self) -> None:
        """From now on its thread stands still for it; what that did meanwhile is not the peer's time."""
        if not self._ended:
            later = time.monotonic() - self._began
            self._began += later
            self._until += later
            self._deadline = min(self._began + self._timeout_s, self._until)

    def advance(self, *, send_only: bool = False) -> bool:
        """Send and receive what can be without waiting; whether it has ended, well or not.

        With `send_only` the answer is not looked for once all is sent: it cannot be there yet.
        """
        try:
            for _ in range(_STEPS):
                if self._answer is not None or self._error is not None or (send_only and not self._out):
                    break
                self._step()
        except BlockingIOError:
            self._wanted = select.POLLOUT if self._out else select.POLLIN
        except ssl.SSLWantReadError:
            self._wanted = select.POLLIN
        except ssl.SSLWantWriteError:
            self._wanted = select.POLLOUT
        except OSError as error:
            self._error = PeerGone("the connection is closed")
            self._error.__cause__ = error
        except Exception as error:  # noqa: BLE001 - `frame` raises it
            self._error = error
        if not self._ended and time.monotonic() >= self._deadline:
            self._error = PeerSlow("a frame was not taken, or did not arrive, in time")
        return self._ended

    def waits_for(self) -> tuple[int, int, float]:
        """File descriptor (-1: closed), the events of poll(2), and when it is given up (monotonic)."""
        return self._sock.fileno(), self._wanted, self._deadline

    def frame(self) -> Frame:
        """The answer. Raises FrameError, PeerGone, PeerSlow, the last also for what has not ended."""
        if self._answer is None:
            raise self._error or PeerSlow("nobody waited for the answer")
        return self._answer

    @property
    def _ended(self) -> bool:
        return self._answer is not None or self._error is not None

    def _step(self) -> None:
        """One call of the socket. Raises OSError where it would wait, FrameError, PeerGone."""
        if self._out:
            piece = self._out.popleft()
            try:
                sent = self._sock.send(piece)
            except BaseException:
                self._out.appendleft(piece)
                raise
            if sent < len(piece):
                self._out.appendleft(piece[sent:])
            elif not self._out:
                self._wanted = select.POLLIN
                self._deadline = min(time.monotonic() + self._timeout_s, self._until)
            return
        got = self._sock.recv_into(self._into)
        if got == 0:
            raise PeerGone("the connection is closed")
        self._into = self._into[got:]
        if self._into:
            return
        if self._begun is None:
            kind, number, size = parse_header(bytes(self._header), self._limits)
            self._begun = Frame(kind, number, room(size))
            self._into = self._begun.payload
            self._deadline = min(time.monotonic() + self._timeout_s, self._until)
        if not self._into:
            self._answer = self._begun
            self.took_s = time.monotonic() - self._began


def gather(asked: Sequence[Asked]) -> None:
    """Wait until each has ended, well or not: as long as the slowest takes, or may take."""
    left = list(asked)
    for one in asked:
        with suppress(Exception):  # of one: the others are waited for, and it says so at its answer
            if one.meanwhile():
                left.remove(one)
    poll_s = max((one.poll_s for one in left), default=0.0)
    sleep_from = time.monotonic() + poll_s
    if left and not poll_s:
        _sleep(left, time.monotonic())
    while left:
        before = len(left)
        left = [one for one in left if not one.advance()]
        now = time.monotonic()
        if len(left) < before:
            sleep_from = now + poll_s
        elif now >= sleep_from:
            _sleep(left, now)


def wait_for(exchange: Exchange) -> None:
    """Until it has ended, well or not."""
    while not exchange.advance():
        _sleep([exchange], time.monotonic())


def _sleep(left: Sequence[Exchange | Asked], now: float) -> None:
    """Until one of them may go on, or is given up."""
    waiting, until = select.poll(), now + 1
    for one in left:
        number, events, deadline = one.waits_for()
        if number < 0:
            return
        waiting.register(number, events)
        until = min(until, deadline)
    waiting.poll(max(0.0, 1000 * (until - now)))
