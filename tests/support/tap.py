"""A unix socket in front of an adapter holder's, which keeps what goes each way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tensafe_gpu.helora import frames
from tensafe_gpu.helora.connection import unix_connector
from tensafe_gpu.helora.frames import Kind


class Tap:
    """Listens at `path` and passes everything on to `target`, also after that was started anew."""

    def __init__(self, path: Path, target: Path) -> None:
        self._target = target
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen()
        self._streams: list[tuple[bytearray, bytearray]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def streams(self) -> list[tuple[bytes, bytes]]:
        """(to the adapter holder, to the key holder) of each connection."""
        return [(bytes(up), bytes(down)) for up, down in self._streams]

    def sent(self) -> int:
        """Bytes that went to the adapter holder."""
        return sum(len(up) for up, _ in self._streams)

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                far = unix_connector(self._target)()
            except OSError:  # nobody is there
                near.close()
                continue
            far.settimeout(None)
            kept = bytearray(), bytearray()
            self._streams.append(kept)
            for one, other, to in ((near, far, kept[0]), (far, near, kept[1])):
                threading.Thread(target=self._pump, args=(one, other, to), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        try:
            while data := source.recv(1 << 20):
                kept += data
                target.sendall(data)
        except OSError:
            pass
        finally:
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)


def split(stream: bytes, limits: Mapping[Kind, int], *, cut: bool = False) -> list[tuple[Kind, bytes]]:
    """The frames of a stream; with `cut`, the last one may be there in part, and is left out."""
    found, begin = [], 0
    while begin < len(stream):
        if cut and len(stream) - begin < frames.HEADER.size:
            return found
        kind, _, size = frames.parse_header(stream[begin : begin + 16], limits)
        end = begin + frames.HEADER.size + size
        if cut and end > len(stream):
            return found
        found.append((kind, stream[begin + 16 : end]))
        begin = end
    assert begin == len(stream)
    return found
