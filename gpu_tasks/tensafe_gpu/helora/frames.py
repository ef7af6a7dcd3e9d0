"""Frames: a header of 16 bytes and a payload whose length is checked before anything is read into memory.

    magic "TSHE" | version u8 = 3 | kind u8 | reserved u16 = 0 | request u32 | payload bytes u32     little-
    endian

docs/helora-wire.md describes every kind. A peer has a bounded time for a whole frame once its first byte is
there. Sockets are set to not block: inside a frame a read is tried before the kernel is asked to wait for it.
"""

from __future__ import annotations

import enum
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

HEADER: Final = struct.Struct("<4sBBHII")
MAGIC: Final = b"TSHE"
VERSION: Final = 3


class Kind(enum.IntEnum):
    """What a frame is; a number is never used for something else."""

    HELLO = 1
    WELCOME = 2
    B_REQUEST = 3
    B_REPLY = 4
    BLOCK_BEGIN = 5
    BLOCK_ROWS = 6
    BLOCK_REPLY = 7
    ACCEPTED = 8
    PRODUCTS = 9
    PRODUCTS_REPLY = 10
    DIRECT = 11
    DIRECT_REPLY = 12
    BLOCK_WHOLE_ROWS = 13
    ERROR = 255


_MIB: Final = 1 << 20
_AT_ONCE: Final = 1 << 16
TO_ADAPTER_HOLDER: Final[Mapping[Kind, int]] = {
    Kind.HELLO: 4096,
    Kind.B_REQUEST: 2,
    Kind.BLOCK_BEGIN: 2 * _MIB,
    Kind.BLOCK_ROWS: 8 * _MIB,
    Kind.BLOCK_WHOLE_ROWS: 8 * _MIB,
    Kind.PRODUCTS: 1025 * _MIB,
    Kind.DIRECT: 256 * _MIB,
}
"""What a key holder may send, and how long at most, whatever the adapter; see `limits`."""
GREETING: Final = {kind: min(size, TO_ADAPTER_HOLDER[Kind.HELLO]) for kind, size in TO_ADAPTER_HOLDER.items()}
"""Of that, before it has been greeted: who has shown nothing gets no memory."""
TO_KEY_HOLDER: Final[Mapping[Kind, int]] = {
    Kind.WELCOME: 4 * _MIB,
    Kind.B_REPLY: 256 * _MIB,
    Kind.BLOCK_REPLY: 512 * _MIB,
    Kind.ACCEPTED: 0,
    Kind.PRODUCTS_REPLY: 64 * _MIB,
    Kind.DIRECT_REPLY: 256 * _MIB,
    Kind.ERROR: 4096,
}
"""What an adapter holder may send at all; of an answer no more is taken than its request asked for."""


class FrameError(Exception):
    """The peer does not speak this protocol; the connection is of no further use."""


class OtherVersion(FrameError):
    """The peer speaks another version of it."""


class PeerGone(Exception):
    """The peer closed the connection."""


class PeerCut(PeerGone):
    """It did so inside a frame."""


class PeerSlow(Exception):
    """The peer did not send, or take, a whole frame in its time."""


class PeerIdle(PeerSlow):
    """The peer sent nothing at all: what it sends later is read as if nothing had been."""


class Frame(NamedTuple):
    """A whole frame; `payload` is a view of its own buffer."""

    kind: Kind
    request: int
    payload: memoryview


def send(
    sock: socket.socket, kind: Kind, request: int, parts: Sequence[bytes | memoryview], timeout_s: float
) -> None:
    """Send one frame. Raises PeerSlow, PeerGone."""
    deadline = time.monotonic() + timeout_s
    try:
        for piece in frame_pieces(kind, request, parts):
            _put(sock, piece, deadline)
    except TimeoutError as error:
        raise PeerSlow("a frame was not taken in time") from error
    except OSError as error:
        raise PeerGone("the connection is closed") from error


def frame_pieces(kind: Kind, request: int, parts: Sequence[bytes | memoryview]) -> list[memoryview]:
    """A frame's bytes, none of the pieces empty; one write for a small frame: one packet, one wake-up."""
    size = sum(len(part) for part in parts)
    header = HEADER.pack(MAGIC, VERSION, kind, 0, request, size)
    pieces = [b"".join((header, *parts))] if size < 65536 else [header, *parts]
    return [memoryview(piece).cast("B") for piece in pieces if piece]


def receive(
    sock: socket.socket,
    limits: Mapping[Kind, int],
    *,
    idle_s: float,
    frame_s: float,
    admit: Callable[[Kind, int], None] | None = None,
) -> Frame:
    """The next frame: its first byte within `idle_s`, the rest within `frame_s`.

    `admit` is called with kind and payload's length before that gets memory, and may raise, or wait, which is
    not the peer's time.

    Raises FrameError for another magic, version or kind than `limits` names, or a longer payload; PeerIdle;
    PeerSlow; PeerGone, and PeerCut when the connection ends inside a frame.
    """
    header, deadline = bytearray(HEADER.size), time.monotonic() + idle_s
    try:
        if not isinstance(sock, ssl.SSLSocket):  # that may have read ahead; else mostly nothing is there yet
            _sleep_until(sock, select.POLLIN, idle_s)
        got = _some(sock, memoryview(header), deadline)
    except PeerSlow as error:
        raise PeerIdle(str(error)) from error
    except OSError as error:
        raise PeerGone("the connection is closed") from error
    if got == 0:
        raise PeerGone("the connection is closed")
    deadline = time.monotonic() + frame_s
    _fill(sock, memoryview(header)[got:], deadline)
    kind, request, size = parse_header(bytes(header), limits)
    if admit is not None:
        began = time.monotonic()
        admit(kind, size)
        deadline += time.monotonic() - began
    payload = room(size)
    _fill(sock, payload, deadline)
    return Frame(kind, request, payload)


def room(size: int) -> memoryview:
    """Where a payload goes, to be filled as a whole. A large one is not touched here: the kernel gives its
    memory as bytes arrive, so that a header alone costs none.
    """
    return memoryview(bytearray(size)) if size <= _AT_ONCE else np.empty(size, dtype=np.uint8).data


def parse_header(header: bytes, limits: Mapping[Kind, int]) -> tuple[Kind, int, int]:
    """Kind, request and payload bytes. Raises FrameError."""
    magic, version, number, reserved, request, size = HEADER.unpack(header)
    if magic != MAGIC or reserved != 0:
        raise FrameError("this is not the HE-LoRA protocol")
    if version != VERSION:
        raise OtherVersion(f"version {version} of the protocol; this side speaks {VERSION}")
    try:
        kind = Kind(number)
        limit = limits[kind]
    except (ValueError, KeyError):
        raise FrameError(f"a frame of kind {number} is not expected here") from None
    if size > limit:
        raise FrameError(f"a frame of {size} bytes; {kind.name} has at most {limit}")
    return kind, request, size


def _fill(sock: socket.socket, target: memoryview, deadline: float) -> None:
    done = 0
    while done < len(target):
        if time.monotonic() >= deadline:  # a trickle that is always there is slow too
            raise PeerSlow("a frame did not arrive in time")
        try:
            got = _some(sock, target[done:], deadline)
        except PeerGone as error:
            raise PeerCut(str(error)) from error
        if got == 0:
            raise PeerCut("the connection is closed")
        done += got


def _some(sock: socket.socket, target: memoryview, deadline: float) -> int:
    """Bytes of the next part; 0 at the connection's end."""
    try:
        got = _tried(sock.recv_into, target, sock, select.POLLIN, deadline)
    except TimeoutError as error:
        raise PeerSlow("a frame did not arrive in time") from error
    except OSError as error:
        raise PeerGone("the connection is closed") from error
    return got


def _put(sock: socket.socket, content: memoryview, deadline: float) -> None:
    """Raises TimeoutError, OSError."""
    done = 0
    while done < len(content):
        done += _tried(sock.send, content[done:], sock, select.POLLOUT, deadline)


def _tried(
    call: Callable[[memoryview], int],
    content: memoryview,
    sock: socket.socket,
    ready: int,
    deadline: float,
) -> int:
    """What the call returns as soon as the socket lets it. Raises TimeoutError, OSError."""
    if sock.gettimeout() != 0:
        sock.setblocking(False)
    while True:
        wanted = ready
        try:
            return call(content)
        except BlockingIOError:
            pass
        except ssl.SSLWantReadError:
            wanted = select.POLLIN
        except ssl.SSLWantWriteError:
            wanted = select.POLLOUT
        now = time.monotonic()
        if now >= deadline:
            raise TimeoutError
        _sleep_until(sock, wanted, deadline - now)


def _sleep_until(sock: socket.socket, ready: int, timeout_s: float) -> None:
    number = sock.fileno()
    if number < 0:
        raise OSError("closed meanwhile")
    waiting = select.poll()
    waiting.register(number, ready)
    waiting.poll(1000 * timeout_s)
