"""What has to be done every few seconds for the service to stay whole: one thread of the supervisor."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensafe.local.logs import rotate_logs
from tensafe.services import Services
from tensafe.storage.sqlite_items import SqliteItems

log = logging.getLogger(__name__)

_TICK_S: Final = 0.25
_PURGE_PAGE: Final = 500
_PURGE_PAGES: Final = 20


@dataclass(frozen=True, slots=True)
class Duty:
    """Something to do every `every_s` seconds."""

    name: str
    every_s: float
    do: Callable[[], object]


class Maintenance:
    """Runs duties in turn; one that fails is logged and tried again when its time comes."""

    def __init__(self, duties: tuple[Duty, ...]) -> None:
        self._duties = duties
        self._due = dict.fromkeys((duty.name for duty in duties), 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        """Begin; every duty is done once straight away."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Finish the duty at hand and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def run_due(self) -> None:
        """Do every duty whose time has come."""
        for duty in self._duties:
            if self._stop.is_set() or time.monotonic() < self._due[duty.name]:
                continue
            try:
                duty.do()
            except Exception:  # the others must go on, and this one is tried again
                log.exception("maintenance failed", extra={"duty": duty.name})
            self._due[duty.name] = time.monotonic() + duty.every_s

    def _run(self) -> None:
        while not self._stop.is_set():
            self.run_due()
            self._stop.wait(_TICK_S)


def local_duties(services: Services, items: SqliteItems, logs: Path) -> tuple[Duty, ...]:
    """The duties of the single-machine mode; `logs` is the folder of its log files."""

    def purge() -> None:
        for _ in range(_PURGE_PAGES):
            if items.purge_expired(_PURGE_PAGE) < _PURGE_PAGE:
                return

    ports = services.ports
    return (
        Duty("logs", 2.0, lambda: rotate_logs(logs)),
        Duty("dead letters", 1.0, lambda: services.dead_letters.consume(ports.queues, ports.queue_specs)),
        Duty("sweep", 5.0, services.sweeper.sweep),
        Duty("retention", 5.0, services.retention.purge),
        Duty("expired items", 5.0, purge),
        # An erased run's wrapped key is gone from the tables at once; this takes it out of the log too.
        Duty("scrub", 30.0, items.scrub),
    )
