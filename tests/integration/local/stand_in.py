"""A small child for the supervisor to watch; each behaviour is one that a real child can show.

wait                   announce, end on SIGTERM
deaf                   announce, ignore SIGTERM
fail TEXT              log TEXT and exit 3
family                 as wait, with a child in its group and one in a session of its own
hold MODEL             as a trainer: receive a message, claim its run, receive another, wait
hang [again]           as a worker: announce itself for two seconds, once or again and again, and wait
chatter MIB            log so much, announce, wait
listen PORT            announce, listen on a port
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tensafe.local.process import OWNER_VARIABLE, die_with_parent


def main(behaviour: str, *arguments: str) -> None:
    die_with_parent()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, (lambda *_: None) if behaviour == "deaf" else (lambda *_: stop.set()))
    facts: dict[str, object] = {"pid": os.getpid()}
    if behaviour == "fail":
        sys.stderr.write(json.dumps({"level": "ERROR", "event": arguments[0], "exception": "OSError"}) + "\n")
        sys.exit(3)
    if behaviour == "family":
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        facts["group"] = subprocess.Popen(sleeper).pid
        facts["own_session"] = subprocess.Popen(sleeper, start_new_session=True).pid
    if behaviour == "chatter":
        for _ in range(int(arguments[0]) * 1024):
            sys.stderr.write("x" * 1023 + "\n")
    if behaviour == "hold":
        facts["runs"] = hold(arguments[0])
    if behaviour == "listen":
        listener = socket.create_server(("127.0.0.1", int(arguments[0])))
        facts["port"] = listener.getsockname()[1]
    announce(facts)
    if behaviour == "hang":
        hang(arguments, stop)
    stop.wait()


def announce(facts: dict[str, object]) -> None:
    """Leave a file named after this incarnation; it appears whole."""
    owner = os.environ[OWNER_VARIABLE]
    folder = Path(os.environ["TENSAFE_DATA_DIR"]) / "announced"
    folder.mkdir(exist_ok=True)
    aside = folder / f".{owner}"
    aside.write_text(json.dumps({**facts, "environment": dict(os.environ)}))
    aside.replace(folder / owner)


def hang(arguments: tuple[str, ...], stop: threading.Event) -> None:
    """A worker's announcements, each of which is forgotten after two seconds."""
    from tensafe.local.composition import open_services
    from tensafe.local.settings import LocalSettings
    from tensafe.operations.worker_status import TTL_S, WorkerStatus

    items = open_services(LocalSettings()).ports.items
    workers = WorkerStatus(items, clock=lambda: time.time() - TTL_S + 2)
    workers.announce("trainer", "acme/tiny", os.environ[OWNER_VARIABLE], 0)
    while arguments and not stop.wait(0.5):
        workers.announce("trainer", "acme/tiny", os.environ[OWNER_VARIABLE], 0)


def hold(model: str) -> list[str]:
    """Claim the run of the first message; receive the second without claiming; announce as a worker."""
    from tensafe.local.composition import open_services
    from tensafe.local.settings import LocalSettings
    from tensafe.operations.doorbell import train_queue

    services, queue, owner = open_services(LocalSettings()), train_queue(model), os.environ[OWNER_VARIABLE]
    services.workers.announce("trainer", model, owner, 0)
    runs = []
    for number in range(2):
        (message,) = services.ports.queues.receive(queue, visibility_s=600, wait_s=20)
        runs.append(str(message.body["stream"]))
        if number == 0:
            assert services.leases.claim(runs[0], owner, queue=queue, receipt=message.receipt)
    return runs


if __name__ == "__main__":
    main(*sys.argv[1:])
