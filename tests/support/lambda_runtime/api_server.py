"""The Runtime API (2018-06-01) for one function process: next, response, error, init error."""

from __future__ import annotations

import json
import queue
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

_PREFIX = "/2018-06-01/runtime"


@dataclass(frozen=True)
class Answer:
    """`kind` is response, error, or init (the process could not start)."""

    kind: str
    body: bytes


@dataclass(frozen=True)
class Invocation:
    """One event; `trace` is X-Ray's header."""

    request_id: str
    event: bytes
    deadline_ms: int
    trace: str


class RuntimeApi:
    """Hands one event at a time to whoever asks."""

    def __init__(self) -> None:
        self.answers: queue.Queue[Answer] = queue.Queue()
        self.first_asked_s: float | None = None
        """`time.perf_counter()` when the process first asked for an event: its initialisation was over."""
        self.last: Invocation | None = None
        self._events: queue.Queue[Invocation | None] = queue.Queue()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def put(self, event: bytes, timeout_s: float, *, sampled: bool = True) -> None:
        deadline_ms = int((time.time() + timeout_s) * 1000)
        trace = (
            f"Root=1-{uuid4().hex[:8]}-{uuid4().hex[:24]};Parent={uuid4().hex[:16]};Sampled={int(sampled)}"
        )
        self.last = Invocation(str(uuid4()), event, deadline_ms, trace)
        self._events.put(self.last)

    def close(self) -> None:
        self._events.put(None)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next(self) -> Invocation | None:
        if self.first_asked_s is None:
            self.first_asked_s = time.perf_counter()
        return self._events.get()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    api: RuntimeApi

    def handle_error(self, *_: Any) -> None:
        """A function that is killed leaves a broken connection, which is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # with the buffer below: 1 to 2 ms for a warm event instead of 88
    wbufsize = 64 * 1024
    server: _Server

    def do_GET(self) -> None:
        invocation = self.server.api.next()
        if invocation is None:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Lambda-Runtime-Aws-Request-Id", invocation.request_id)
        self.send_header("Lambda-Runtime-Deadline-Ms", str(invocation.deadline_ms))
        arn = "arn:aws:lambda:eu-central-1:123456789012:function:tensafe"
        self.send_header("Lambda-Runtime-Invoked-Function-Arn", arn)
        self.send_header("Lambda-Runtime-Trace-Id", invocation.trace)
        self._finish(invocation.event)

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.removeprefix(_PREFIX)
        kind = "init" if path.startswith("/init/") else path.rpartition("/")[2]
        self.server.api.answers.put(Answer(kind, body))
        self.send_response(202)
        self._finish(json.dumps({"status": "OK"}).encode())

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _finish(self, body: bytes) -> None:
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None: ...
