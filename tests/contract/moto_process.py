"""moto in a process of its own behind HTTP: `python -m tests.contract.moto_process` prints its address.

It ends with its input. Two of moto's gaps are closed, for what several processes do at the same time:
requests are answered one at a time (emulators.py says why), and a transaction that is sent again with the
ClientRequestToken of one that was applied is answered as that was, and not applied again
(https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.contract.emulators import aws_at

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def moto_process() -> Iterator[str]:
    """The server's address, with credentials of nobody and its endpoint in this process' environment."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.contract.moto_process"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with aws_at(address):
            yield address
    finally:
        server.stdin.close()
        server.wait(10)
        server.stdout.close()


def _serve() -> None:
    from moto.dynamodb.responses import DynamoHandler
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication
    from moto.server import ThreadedMotoServer

    lock, answer = threading.Lock(), DomainDispatcherApplication.__call__
    applied: dict[str, Any] = {}
    write = DynamoHandler.transact_write_items

    def answer_alone(application: DomainDispatcherApplication, *request: Any) -> Any:
        with lock:
            return answer(application, *request)

    def write_once(handler: DynamoHandler) -> Any:
        token = handler.body["ClientRequestToken"]
        if token not in applied:
            applied[token] = write(handler)  # one that is cancelled raises
        return applied[token]

    DomainDispatcherApplication.__call__ = answer_alone
    DynamoHandler.transact_write_items = write_once
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)  # noqa: T201
    sys.stdin.read()
    os._exit(0)  # a server that is stopped waits for every client to hang up


if __name__ == "__main__":
    _serve()
