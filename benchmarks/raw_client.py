"""Closed-loop HTTP clients in processes of their own, on bare sockets.

An SDK or an HTTP library costs more per request than the service does; on a small machine it would
be the thing measured. These clients write requests built beforehand and read an answer by its
Content-Length, on one kept-alive connection each.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

_READ_BYTES: Final = 65536
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Work:
    """What one client does: each round is a sequence of requests whose answers must be 200."""

    port: int
    rounds: Sequence[Sequence[bytes]]
    warm_rounds: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Of every measured round of a client: seconds it took, and when it ended (monotonic clock)."""

    seconds: list[float] = field(default_factory=list)
    ended_at: list[float] = field(default_factory=list)
    cpu_s: float = 0.0


def post(path: str, body: bytes, key: str, content_type: str = "application/json") -> bytes:
    """A whole HTTP/1.1 request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class RawConnection:
    """One kept-alive connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def send(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._socket.sendall(request)
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._fill()
        head, rest = self._buffer[:end], self._buffer[end + 4 :]
        length = _content_length(head)
        self._buffer = rest
        while len(self._buffer) < length:
            self._fill()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return int(head[9:12]), body

    def call(self, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        """POST JSON and read JSON."""
        status, answer = self.send(post(path, json.dumps(body).encode(), key))
        if status != 200:
            raise RuntimeError(f"{path}: {status} {answer[:300]!r}")
        parsed: dict[str, Any] = json.loads(answer)
        return parsed

    def close(self) -> None:
        self._socket.close()

    def _fill(self) -> None:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the service closed the connection")
        self._buffer += data


def _content_length(head: bytes) -> int:
    lower = head.lower()
    start = lower.find(b"\r\ncontent-length:")
    if start < 0:
        raise ConnectionError("an answer without Content-Length")
    stop = lower.find(b"\r\n", start + 2)
    return int(lower[start + 17 : stop if stop >= 0 else None])


def drive(work: Work) -> Timings:
    """Do the work in this process."""
    connection = RawConnection(work.port)
    for requests in work.rounds[: work.warm_rounds]:
        _round(connection, requests)
    return _timed(connection, work)


def drive_together(works: Sequence[Work]) -> list[Timings]:
    """Each piece of work in a process of its own, all measured rounds started at once."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection[Any, Any]] = []
    processes = []
    for work in works:
        ours, theirs = context.Pipe()
        process = context.Process(target=_client, args=(theirs, work), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() == "warm"
    for pipe in pipes:
        pipe.send("go")
    timings = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join(_TIMEOUT_S)
    failed = [timing for timing in timings if isinstance(timing, str)]
    if failed:
        raise RuntimeError(f"a client failed: {failed[0]}")
    return timings


def rate(timings: Sequence[Timings]) -> float:
    """Rounds per second while every client was busy: until the first of them was done."""
    began = min(ended - seconds for timing in timings for ended, seconds in _first(timing))
    until = min(timing.ended_at[-1] for timing in timings)
    done = sum(ended <= until for timing in timings for ended in timing.ended_at)
    return done / (until - began)


def _first(timing: Timings) -> list[tuple[float, float]]:
    return [(timing.ended_at[0], timing.seconds[0])]


def _client(pipe: Connection[Any, Any], work: Work) -> None:
    try:
        connection = RawConnection(work.port)
        for requests in work.rounds[: work.warm_rounds]:
            _round(connection, requests)
        pipe.send("warm")
        pipe.recv()
        pipe.send(_timed(connection, work))
    except Exception as error:  # noqa: BLE001 - told to the parent, whatever it is
        pipe.send(f"{type(error).__name__}: {error}")


def _timed(connection: RawConnection, work: Work) -> Timings:
    timings = Timings()
    cpu_before = time.process_time()
    for requests in work.rounds[work.warm_rounds :]:
        began = time.monotonic()
        _round(connection, requests)
        ended = time.monotonic()
        timings.seconds.append(ended - began)
        timings.ended_at.append(ended)
    connection.close()
    return Timings(timings.seconds, timings.ended_at, time.process_time() - cpu_before)


def _round(connection: RawConnection, requests: Sequence[bytes]) -> None:
    for request in requests:
        status, body = connection.send(request)
        if status != 200 or body.startswith(b'{"error"'):
            raise RuntimeError(f"{status}: {body[:300]!r}")
