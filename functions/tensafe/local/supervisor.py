"""Starts the children of a deployment, restarts what dies, gives back what the dead held, stops cleanly."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final, Protocol

from tensafe.contracts.errors import ConfigurationError, TensafeError
from tensafe.local.children import Backoff, Child, ChildSpec, Death
from tensafe.local.composition import sqlite_queues
from tensafe.local.lock import DirectoryLock
from tensafe.local.maintenance import Maintenance
from tensafe.local.owners import Owners, kill_processes_of
from tensafe.local.recovery import reclaim
from tensafe.services import Services

log = logging.getLogger(__name__)

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Events(Protocol):
    """How the supervisor tells what happens. Called from its own thread; must not block."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def waiting(self, text: str) -> None:
        """What is being waited for at present."""

    def ready(self, url: str) -> None:
        """The service answers at `url` and every worker is there; told once."""


@dataclass(frozen=True, slots=True)
class Timings:
    """How patient the supervisor is, in seconds."""

    backoff_first_s: float = 0.2
    backoff_longest_s: float = 10.0
    stable_s: float = 60.0
    stop_grace_s: float = 20.0
    probe_every_s: float = 0.1
    tick_s: float = 1.0
    tries_before_ready: int = 3
    """Deaths in a row before the service was ready, after which starting is given up."""


class Supervisor:
    """Runs `children` over a data directory whose lock the caller holds, until told to stop."""

    def __init__(  # noqa: PLR0913 - its collaborators, each by name
        self,
        lock: DirectoryLock,
        services: Services,
        children: Sequence[ChildSpec],
        *,
        is_ready: Callable[[], bool],
        maintenance: Maintenance,
        events: Events,
        url: str,
        hung: Callable[[], Collection[str]] = tuple,
        timings: Timings | None = None,
    ) -> None:
        """`hung` tells owners and names of children that live and do nothing; they are killed."""
        self._services = services
        self._is_ready = is_ready
        self._maintenance = maintenance
        self._events = events
        self._url = url
        self._hung = hung
        self._timings = timings or Timings()
        self._owners = Owners(lock.data_dir)
        logs = lock.data_dir / "logs"
        self._children = [Child(spec, logs / f"{spec.name}.log", self._backoff()) for spec in children]
        self._ready = False
        self._next_probe = 0.0
        self._stopping = False
        self._interrupts = 0
        self._unclaimed: dict[str, str | None] = {}
        self._innocent: set[str] = set()
        """Owners among them that did not die by themselves."""

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or SIGHUP; a second SIGINT ends everything at once.

        Raises ConfigurationError if a child cannot be started or keeps dying before the service was
        ready. Call it from the main thread: signals arrive there, and children end with the thread
        that started them.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the supervisor runs in the main thread")
        with self._woken_by_signals() as wakeup_fd:
            self._recover()
            self._maintenance.start()
            try:
                while not self._stopping:
                    self._step()
                    self._sleep(wakeup_fd, self._pause_s())
            finally:
                self._stop(wakeup_fd)
                self._maintenance.stop()

    # Serving

    def _step(self) -> None:
        """End the hung, collect the dead, start what is due, and look whether all is ready."""
        self._kill_hung()
        for child in self._children:
            death = child.collect()
            if death is not None:
                self._died(child, death)
        self._reclaim_all()
        for child in self._children:
            if not child.alive and time.monotonic() >= child.restart_at:
                self._start(child)
        if not self._ready and time.monotonic() >= self._next_probe:
            self._probe()

    def _kill_hung(self) -> None:
        hung = self._hung()
        for child in self._children:
            if child.alive and (child.owner in hung or child.spec.name in hung):
                log.error("child hung", extra={"child": child.spec.name, "owner": child.owner})
                self._events.note(f"{child.spec.name} does not respond any more; killing it")
                child.kill()

    def _start(self, child: Child) -> None:
        try:
            child.start(self._owners.add)
        except OSError as error:
            if not self._ready:
                raise ConfigurationError(f"{child.spec.name} cannot be started: {error}") from error
            # A full disk, for one, must not take down what still runs.
            pause_s = child.backoff.after(0.0)
            child.restart_at = time.monotonic() + pause_s
            log.error("child not started", extra={"child": child.spec.name, "errno": error.errno})
            self._events.note(f"{child.spec.name} cannot be started ({error}); again in {pause_s:.1f} s")
            return
        log.info("child started", extra={"child": child.spec.name, "pid": child.pid, "owner": child.owner})

    def _died(self, child: Child, death: Death) -> None:
        pause_s = child.backoff.after(death.lived_s)
        child.restart_at = time.monotonic() + pause_s
        self._unclaimed[death.owner] = child.spec.queue
        fields = {"child": child.spec.name, "owner": death.owner, "code": death.code}
        log.error("child died", extra={**fields, "lived_s": round(death.lived_s, 1)})
        if not self._ready and child.deaths >= self._timings.tries_before_ready:
            raise ConfigurationError(_crash_loop(child, death))
        self._events.note(f"{child.spec.name}: {death.cause}; starting it again in {pause_s:.1f} s")

    def _probe(self) -> None:
        try:
            self._ready = self._is_ready()
        except (TensafeError, OSError) as error:
            log.warning("readiness not known", extra={"error": type(error).__name__})
        self._next_probe = time.monotonic() + self._timings.probe_every_s
        if self._ready:
            log.info("ready")
            self._events.ready(self._url)
        else:
            self._events.waiting("starting " + ", ".join(child.spec.name for child in self._children))

    def _pause_s(self) -> float:
        """Until there is something to do; a death or a signal ends the sleep early."""
        now, pause_s = time.monotonic(), self._timings.tick_s
        if not self._ready:
            pause_s = min(pause_s, self._next_probe - now)
        for child in self._children:
            if not child.alive:
                pause_s = min(pause_s, child.restart_at - now)
        return max(0.0, pause_s)

    # What the dead held

    def _recover(self) -> None:
        """After a supervisor that was killed: end what it left running, give back what that held."""
        former = self._owners.all()
        kill_processes_of(set(former))
        # We hold the lock, so nobody who has announced itself or taken a message is alive any more.
        announced = [worker.owner for worker in self._services.workers.list()]
        self._unclaimed.update(dict.fromkeys((*former, *announced)))
        self._innocent.update(self._unclaimed)
        self._reclaim_all()
        for child in self._children:
            if child.spec.queue is not None:
                sqlite_queues(self._services).hand_back(child.spec.queue)

    def _reclaim_all(self) -> None:
        for owner, queue in list(self._unclaimed.items()):
            try:
                reclaim(self._services, owner, queue, counted=owner not in self._innocent)
                self._owners.settle(owner)
            except (TensafeError, OSError) as error:  # a full disk, for one
                log.warning("not given back yet", extra={"owner": owner, "error": type(error).__name__})
                continue  # tried again at the next step; at worst the lease runs out
            del self._unclaimed[owner]

    # Stopping

    def _stop(self, wakeup_fd: int) -> None:
        """SIGTERM, then SIGKILL after the grace or at a second signal; returns when all are gone."""
        self._events.waiting("stopping")
        for child in self._children:
            child.terminate()
        deadline = time.monotonic() + self._timings.stop_grace_s
        killed = False
        while self._bury_stopped():
            left_s = deadline - time.monotonic()
            if not killed and (left_s <= 0 or self._interrupts > 1):
                for child in self._children:
                    child.kill()
                killed = True
            self._sleep(wakeup_fd, 1.0 if killed else min(left_s, 1.0))
        self._reclaim_all()
        log.info("stopped", extra={"killed": killed})

    def _bury_stopped(self) -> bool:
        """Collect those that have ended; whether any is left."""
        for child in self._children:
            death = child.collect()
            if death is not None:
                self._unclaimed[death.owner] = child.spec.queue
                self._innocent.add(death.owner)
        return any(child.alive for child in self._children)

    # Signals

    @contextmanager
    def _woken_by_signals(self) -> Iterator[int]:
        """Count stopping signals, and make them and the death of a child readable on a descriptor."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def stop(number: int, _frame: FrameType | None) -> None:
            self._stopping = True
            self._interrupts += number == signal.SIGINT

        def child_died(_number: int, _frame: FrameType | None) -> None:
            """The wake-up descriptor has said it already."""

        before = {number: signal.signal(number, stop) for number in _STOPPING}
        before |= {signal.SIGCHLD: signal.signal(signal.SIGCHLD, child_died)}
        former_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        try:
            yield read_fd
        finally:
            signal.set_wakeup_fd(former_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(read_fd)
            os.close(write_fd)

    @staticmethod
    def _sleep(wakeup_fd: int, timeout_s: float) -> None:
        readable, _, _ = select.select([wakeup_fd], [], [], max(0.0, timeout_s))
        if readable:
            os.read(wakeup_fd, 4096)

    def _backoff(self) -> Backoff:
        timings = self._timings
        return Backoff(timings.backoff_first_s, timings.backoff_longest_s, timings.stable_s)


def _crash_loop(child: Child, death: Death) -> str:
    lines = child.last_events() or ["(nothing)"]
    told = "\n".join(f"  {line}" for line in lines)
    return (
        f"{child.spec.name} died {child.deaths} times before the service was ready ({death.cause}). "
        f"It said last:\n{told}\nThe whole log is {child.log_path}"
    )
