"""The API's address on loopback: the emulator knows an API by the Host header, which a base URL cannot say.

Passes everything on as it came, but for that header. It listens before the stack is deployed, since the stack
is told the address; until it knows the API's host it answers 503.

A burst waits here. As AWS does, the emulator starts processes of the authorizer and of the API for as many
requests as come at the same time; on one machine a client would give up before they have started.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

_TIMEOUT_S: Final = 60.0
_AT_ONCE: Final = 4
_WAITING_AT_ONCE: Final = 8
"""Of those that wait for a result; they must not keep back the requests that lead to it."""
WAITS_PER_TENANT: Final = 6
"""Less than that, so that one tenant leaves room; the deployment is told so."""
_MAY_WAIT: Final = ("/retrieve_future", "/result", "/completions")
_HOP_BY_HOP: Final = frozenset({"connection", "host", "keep-alive", "transfer-encoding", "content-length"})


class Front:
    """`url` is where clients go; `host` is set once the API is there."""

    def __init__(self, emulator: tuple[str, int]) -> None:
        self.host: str | None = None
        self.at_once = threading.Semaphore(_AT_ONCE)
        self.waiting_at_once = threading.Semaphore(_WAITING_AT_ONCE)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.front = self
        self._server.emulator = emulator
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def front(address: str, port: int) -> Iterator[Front]:
    """A front of the emulator there; it ends with the block."""
    made = Front((address, port))
    try:
        yield made
    finally:
        made.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a long poll may be at hand
    request_queue_size = 128
    front: Front
    emulator: tuple[str, int]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nobody's error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        host = self.server.front.host
        if host is None:
            self.send_error(503, "the stack is being deployed")
            return
        path = self.path.partition("?")[0]
        may_wait = any(part in path for part in _MAY_WAIT)
        with self.server.front.waiting_at_once if may_wait else self.server.front.at_once:
            self._ask(host, body)

    def _ask(self, host: str, body: bytes) -> None:
        connection = http.client.HTTPConnection(*self.server.emulator, timeout=_TIMEOUT_S)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            if body or self.command in ("POST", "PUT"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self.send_error(502, "the emulator does not answer")
            return
        finally:
            connection.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _pass_on  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """The functions log what they do."""
