"""The front of the local deployment passes on a few requests at a time, and waits of others hold up none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tools.aws_local.front import Front, front


class Api(ThreadingHTTPServer):
    """Stands behind the front; a long poll stays until `done`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.done = threading.Lock(), threading.Event()
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        kind = self.path.rpartition("/")[2]
        with self.server.lock:
            self.server.now[kind] = self.server.now.get(kind, 0) + 1
            self.server.most[kind] = max(self.server.most.get(kind, 0), self.server.now[kind])
        if kind == "retrieve_future":
            self.server.done.wait(20)
        else:
            time.sleep(0.2)
        with self.server.lock:
            self.server.now[kind] -= 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def api() -> Iterator[Api]:
    served = Api()
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served
    served.done.set()
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def reached(api: Api) -> Iterator[Front]:
    with front("127.0.0.1", api.server_address[1]) as made:
        made.host = "api.example"
        yield made


def test_a_burst_waits_and_polls_do_not_keep_back_what_they_wait_for(api: Api, reached: Front) -> None:
    def ask(path: str) -> int:
        return httpx.post(f"{reached.url}/api/v1/{path}", timeout=20).status_code

    with ThreadPoolExecutor(40) as pool:
        polls = [pool.submit(ask, "retrieve_future") for _ in range(24)]
        burst = [pool.submit(ask, "asample") for _ in range(16)]
        assert {one.result() for one in burst} == {200}
        assert not any(one.done() for one in polls)
        deadline = time.monotonic() + 20
        while api.most.get("retrieve_future", 0) < 8:  # all that may wait at once have come
            assert time.monotonic() < deadline
            time.sleep(0.01)
        api.done.set()
        assert {one.result() for one in polls} == {200}
    assert (api.most["asample"], api.most["retrieve_future"]) == (4, 8)
