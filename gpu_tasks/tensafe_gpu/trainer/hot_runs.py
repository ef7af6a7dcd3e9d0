"""The runs that a trainer process holds, and the thread that keeps their leases and messages."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tensafe.contracts.errors import TensafeError
from tensafe.operations.leases import LeaseLost
from tensafe.services import Services
from tensafe.storage.ports import VISIBILITY_MAX_S, Message, StaleReceipt
from tensafe_gpu.trainer.hot_run import HotRun

log = logging.getLogger(__name__)

RENEW_AFTER_S: Final = VISIBILITY_MAX_S - 3600.0
"""A message cannot be kept for longer than 12 h; the hour is for runs that were received with it and restored
before its own, and for a queue that is away."""


class HotRuns:
    """Changed by the computing thread, read by the one that extends. Times in seconds.

    A run that stays hot outlives its message: before the queue would take that away, a new one is sent and
    the old one deleted, in this order, so that there is one whenever this process dies. The lease goes on
    meanwhile, and whoever receives the new one hands it back to the queue until it comes to its holder.
    """

    def __init__(
        self,
        services: Services,
        queue: str,
        *,
        visibility_s: float,
        heartbeat_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = services
        self._queue = queue
        self._visibility_s = visibility_s
        # Two beats may fail before the lease runs out, however short the deployment has made it.
        self._heartbeat_s = min(heartbeat_s, services.leases.lease_s / 3)
        self._clock = clock
        self._runs: dict[str, HotRun] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._runs

    def all(self) -> list[HotRun]:
        """A copy, so that runs may be added and forgotten meanwhile."""
        return list(self._runs.values())

    def add(self, run: HotRun) -> None:
        """Keep its lease and message from now on."""
        with self._lock:
            run.received_s = self._clock()
            self._runs[run.stream.stream_id] = run

    def forget(self, run: HotRun) -> None:
        """Once this returns, nothing is extended for the run any more."""
        with self._lock:
            self._runs.pop(run.stream.stream_id, None)

    def renew(self, stream_id: str, message: Message) -> None:
        """The run's message ran out of time and came to us again, or the new one did: its receipt is the
        good one now.
        """
        with self._lock:
            run = self._runs[stream_id]
            run.message, run.received_s = message, self._clock()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Extend everything that is held, from a thread of its own, while the block runs."""
        ended = threading.Event()
        threading.Thread(target=self._keep, args=(ended,), name="heartbeat", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def beat(self) -> None:
        """Extend every lease and message once; what cannot be extended is marked as lost."""
        for run in self.all():
            # Under the lock, so that a run is never extended after it has been released.
            with self._lock:
                if self._runs.get(run.stream.stream_id) is run:
                    self._extend(run)

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(self._heartbeat_s):
            self.beat()

    def _extend(self, run: HotRun) -> None:
        try:
            self._services.leases.extend(run.lease)
            if run.received_s is None:
                return  # its new message waits in the queue
            if self._clock() - run.received_s >= RENEW_AFTER_S:
                self._send_anew(run)
                return
            self._services.ports.queues.extend(self._queue, run.message.receipt, self._visibility_s)
        except (LeaseLost, StaleReceipt):
            run.lost = True
        except TensafeError:
            log.exception("heartbeat failed", extra={"stream": run.stream.stream_id})

    def _send_anew(self, run: HotRun) -> None:
        """A new message, behind the old one and so seen by nobody until that is gone."""
        self._services.doorbell.send_run(run.stream)
        run.received_s = None
        log.info("message sent anew: the run is held for long", extra={"stream": run.stream.stream_id})
        # If this fails, the old one comes again when its time is up, and is then the good one.
        self._services.ports.queues.delete(self._queue, run.message.receipt)
