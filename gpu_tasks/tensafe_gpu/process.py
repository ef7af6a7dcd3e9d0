"""What every task process does: die with its supervisor, name itself, stop on SIGTERM, say it lives."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from tensafe.local.process import OWNER_VARIABLE, die_with_parent
from tensafe.operations.worker_status import TTL_S, Role
from tensafe.services import Services
from tensafe_gpu.healthcheck import mark_alive

__all__ = ["alive_until", "announce_forever", "die_with_parent", "owner_name", "stop_on_signals"]

log = logging.getLogger(__name__)

_EVERY_S: Final = TTL_S / 3
_AFTER_FAILURE_S: Final = 1.0


def owner_name(role: str) -> str:
    """A name for this process incarnation; never used twice.

    The supervisor passes one in TENSAFE_OWNER so that it can break this process's leases at once
    when it sees it die.
    """
    return os.environ.get(OWNER_VARIABLE) or f"{role}-{os.getpid()}-{secrets.token_hex(6)}"


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def announce_forever(
    services: Services, role: Role, base_model: str, owner: str, stop: threading.Event
) -> None:
    """Announce readiness now and from a thread of its own until `stop`.

    Raises what the first announcement raises; a later one that fails is logged and tried again soon.
    """
    since_s = int(time.time())
    services.workers.announce(role, base_model, owner, since_s)
    mark_alive()

    def repeat() -> None:
        pause_s = _EVERY_S
        while not stop.wait(pause_s):
            try:
                series = services.metrics.series()
                services.workers.announce(role, base_model, owner, since_s, series)
                mark_alive()
                pause_s = _EVERY_S
            except Exception:  # a worker that works must not look dead for ever
                log.exception("not announced", extra={"owner": owner})
                pause_s = _AFTER_FAILURE_S

    threading.Thread(target=repeat, name="announce", daemon=True).start()


def alive_until(stop: threading.Event, works: Callable[[], bool], every_s: float = _EVERY_S) -> None:
    """Wait for `stop`, and mark this task alive now and every so often as long as `works` says so.

    For a task that announces itself to no store: what it does instead says whether it works.
    """
    while True:
        if works():
            mark_alive()
        if stop.wait(every_s):
            return
