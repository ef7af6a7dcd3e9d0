"""What a round costs both parties in their own code: a connection that hands frames over in memory."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tensafe_gpu.helora.frames import HEADER, TO_ADAPTER_HOLDER, Frame, frame_pieces, parse_header

if TYPE_CHECKING:
    from tensafe_gpu.adapter_holder.service import HolderService, Session


class InMemory:
    """A key holder's socket whose peer answers as soon as it has a whole frame. For one thread."""

    family = socket.AF_UNIX

    def __init__(self, service: HolderService) -> None:
        self._service = service
        self._session: Session | None = None
        self._taken, self._left = bytearray(), memoryview(b"")
        self._null = Path("/dev/null").open("rb")  # noqa: SIM115 - open as long as this is

    @classmethod
    def to(cls, service: HolderService) -> socket.socket:
        """As a `Connector` returns it."""
        return cast("socket.socket", cls(service))

    def send(self, piece: memoryview) -> int:
        """Take it, and answer the frame if that was its end."""
        self._taken += piece
        kind, request, size = parse_header(bytes(self._taken[: HEADER.size]), TO_ADAPTER_HOLDER)
        if len(self._taken) == HEADER.size + size:
            frame = Frame(kind, request, memoryview(self._taken)[HEADER.size :])
            self._taken = bytearray()
            if self._session is None:
                self._session, (answer, parts) = self._service.greet(frame, None)
            else:
                answer, parts = self._session.answer(frame)
            self._left = memoryview(b"".join(frame_pieces(answer, request, parts)))
            self._session.prepare_next()
        return len(piece)

    def recv_into(self, into: memoryview) -> int:
        """The next bytes of the answer."""
        if not self._left:
            raise BlockingIOError
        count = min(len(into), len(self._left))
        into[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def recv(self, count: int, flags: int = 0) -> bytes:
        """Nothing comes unasked."""
        raise BlockingIOError

    def gettimeout(self) -> float:
        """It never blocks."""
        return 0.0

    def getsockopt(self, *_: int) -> bytes:
        """There is no peer process."""
        raise OSError

    def fileno(self) -> int:
        """Always readable."""
        return self._null.fileno()

    def close(self) -> None:
        """Give the session back."""
        self._null.close()
        if self._session is not None:
            self._session.close()
            self._session = None
