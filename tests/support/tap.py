"""A unix socket in front of an adapter holder's: keeps what goes each way, and can hold it up or cut it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tensafe_gpu.helora import frames
from tensafe_gpu.helora.connection import unix_connector
from tensafe_gpu.helora.frames import TO_ADAPTER_HOLDER, Kind
from tensafe_gpu.helora.messages import unpack_ranges


class Tap:
    """Listens at `path` and passes everything on to `target`, also after that was started anew."""

    def __init__(self, path: Path, target: Path) -> None:
        self._target = target
        self.hold_s = 0.0
        """How long each piece to the key holder is kept back."""
        self.claimed: dict[Kind, int] = {}
        """How long frames of these kinds to the key holder say that they are."""
        self._open: list[socket.socket] = []
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

    def cut(self) -> None:
        """End every connection that stands."""
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._open.clear()

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
            self._open += (near, far)
            for down, (one, other) in enumerate(((near, far), (far, near))):
                ways = (one, other, kept[down])
                threading.Thread(
                    target=self._pump, args=ways, kwargs={"down": bool(down)}, daemon=True
                ).start()

    def _pump(self, source: socket.socket, target: socket.socket, kept: bytearray, *, down: bool) -> None:
        try:
            while data := source.recv(1 << 20):
                kept += data
                if down:
                    time.sleep(self.hold_s)
                    data = self._claiming(data)
                target.sendall(data)
        except OSError:
            pass
        finally:
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)

    def _claiming(self, data: bytes) -> bytes:
        """One request is answered at a time, so an answer begins what is read."""
        if len(data) < frames.HEADER.size or not data.startswith(frames.MAGIC):
            return data
        fields = frames.HEADER.unpack_from(data)
        size = self.claimed.get(fields[2], fields[-1])
        return frames.HEADER.pack(*fields[:-1], size) + data[frames.HEADER.size :]


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


def indices_sent(tap: Tap) -> list[tuple[bytes, int]]:
    """(block id, index) of every token for which products were asked, also by frames that were cut."""
    return [
        (one.block_id, index)
        for up, _ in tap.streams()
        for kind, payload in split(up, TO_ADAPTER_HOLDER, cut=True)
        if kind is Kind.PRODUCTS
        for one in unpack_ranges(memoryview(payload))[0]
        for index in range(one.first, one.first + one.tokens)
    ]
