"""Somebody between a key holder and an adapter holder on a unix socket, who answers what a test says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tensafe_gpu.helora.connection import unix_connector
from tensafe_gpu.helora.frames import (
    HEADER,
    MAGIC,
    TO_ADAPTER_HOLDER,
    TO_KEY_HOLDER,
    VERSION,
    Frame,
    Kind,
    PeerGone,
    receive,
)

Change = Callable[[Frame], Frame]
_S = 60.0


def unchanged(frame: Frame) -> Frame:
    return frame


class Meddler:
    """Listens at `path`; passes frames on to `target` and their answers back, each by way of `change`."""

    def __init__(self, path: Path, target: Path) -> None:
        self.target = target
        self.change: Change = unchanged
        self.asked: list[Frame] = []
        self.said: list[Frame] = []
        """By the adapter holder; not what was made of it."""
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def of(self, kind: Kind) -> list[Frame]:
        """What the adapter holder has said of this kind."""
        return [frame for frame in self.said if frame.kind is kind]

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._between, args=(near,), daemon=True).start()

    def _between(self, near: socket.socket) -> None:
        """One request has one answer."""
        with near, unix_connector(self.target)() as far, suppress(OSError, PeerGone):
            while True:
                request = receive(near, TO_ADAPTER_HOLDER, idle_s=_S, frame_s=_S)
                self.asked.append(request)
                _pass_on(far, request)
                answer = receive(far, TO_KEY_HOLDER, idle_s=_S, frame_s=_S)
                self.said.append(answer)
                _pass_on(near, self.change(answer))


def _pass_on(to: socket.socket, frame: Frame) -> None:
    to.setblocking(True)
    header = HEADER.pack(MAGIC, VERSION, frame.kind, 0, frame.request, len(frame.payload))
    to.sendall(header + bytes(frame.payload))
