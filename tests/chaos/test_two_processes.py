"""Two trainer processes, killed and stopped at any instant, and 200 operations of 20 runs.

Each is applied once and in order. The processes are real, and so are SIGKILL, SIGSTOP and the time that
passes: over a data directory, and (killed, not stopped) over DynamoDB, SQS, S3 and KMS of the emulator. A
seed says after how long what happens to whom; what a process is doing at that instant differs from run to
run, and what all must have led to does not. One that is stopped sleeps longer than its leases, and goes on in
the middle of whatever it did when the other one has its runs.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tensafe.local.recovery import reclaim
from tensafe.operations import layout
from tensafe.operations.doorbell import train_queue
from tensafe.services import Services, wire
from tests.chaos.forking import KILLED, Server
from tests.chaos.script import close, copied, open_folder
from tests.chaos.twenty_runs import RUNS, all_ended, outcome, seeds, submit_mixed
from tests.support.aws_stack import make_stack
from tests.support.cloud import MODEL
from tests.support.ministack import ON_EMULATOR, emulator_of_aws
from tests.unit.operations.world import BASE

pytestmark = pytest.mark.slow

LATEST_S: Final = 200.0


@dataclass
class Site:
    """Where the processes work, what they are told, and what befalls them."""

    services: Services
    folder: Path
    started: dict[str, Any]
    embedded: bool
    blows: tuple[str, ...]

    @property
    def stopped_s(self) -> float:
        """Longer than its leases and messages last, so that the other one has its runs by then."""
        return self.services.leases.lease_s * 1.5


@pytest.fixture(params=["sqlite", ON_EMULATOR])
def site(request: pytest.FixtureRequest, empty: Path, space: Path, tmp_path: Path) -> Iterator[Site]:
    if request.param == "sqlite":
        folder = copied(empty, space / f"two-{os.getpid()}-{time.monotonic_ns()}")
        opened, blows = open_folder(folder), (*["kill"] * 3, "stop", *["kill"] * 3, "stop", *["kill"] * 2)
        yield Site(_with_lease(opened, 1.0), folder, {"lease_s": 1.0, "visibility_s": 1.0}, True, blows)
        close(opened)
        return
    with emulator_of_aws(tmp_path) as emulator:
        stack = make_stack(emulator.endpoint_url, MODEL | {"name": BASE})
        with stack.services() as opened:
            # On a busy machine a heartbeat of all runs, a hundred calls, takes seconds.
            started = {"lease_s": 30.0, "visibility_s": 5.0, "environment": stack.environment}
            yield Site(_with_lease(opened, 30.0), tmp_path, started, False, ("kill",) * 2)


def _with_lease(opened: Services, lease_s: float) -> Services:
    return wire(opened.ports, opened.models, lease_s=lease_s)


@dataclass
class Workers:
    """Two places, each with a process; whoever dies has a successor at once."""

    site: Site
    server: Server
    rng: random.Random
    owners: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    asleep: list[threading.Timer] = field(default_factory=list)
    hired: int = 0

    def fill(self) -> None:
        for place in range(2):
            self.owners.append("")
            self.pids.append(0)
            self._hire(place)

    def _hire(self, place: int) -> None:
        self.hired += 1
        self.owners[place] = f"trainer-{self.hired}"
        self.pids[place] = self.server.start(self.site.folder, self.owners[place], **self.site.started)

    def strike(self, what: str) -> bool:
        """Whether it was done: not what would make poison of an operation that is none."""
        place = self.rng.randrange(2)
        if self._asleep() or self._in_danger(place):
            return False
        if what == "stop":
            self._stop(self.pids[place])
        else:
            self._kill(place)
        return True

    def _asleep(self) -> bool:
        return any(timer.is_alive() for timer in self.asleep)

    def _in_danger(self, place: int) -> bool:
        """Whether a death now could be the third of an operation, or of a restore."""
        services = self.site.services
        for held in services.ports.items.query(layout.worker_partition(self.owners[place])):
            begun = services.outcomes.first_open(held.key.sort)
            if services.leases.claims(held.key.sort) > 1 or (begun is not None and begun.tries > 1):
                return True
        return False

    def _stop(self, pid: int) -> None:
        """By a timer: one that is stopped may hold the file's lock, for which we wait too."""
        os.kill(pid, signal.SIGSTOP)
        self.asleep.append(threading.Timer(self.site.stopped_s, os.kill, (pid, signal.SIGCONT)))
        self.asleep[-1].start()

    def _kill(self, place: int) -> None:
        os.kill(self.pids[place], signal.SIGKILL)
        assert self.server.wait(self.pids[place]) == KILLED
        if not self.site.embedded:  # its messages run out; its leases would, in half a minute
            self.site.services.leases.break_all(self.owners[place])
        elif self.rng.random() < 0.5:  # by the supervisor; else leases and messages run out
            reclaim(self.site.services, self.owners[place], train_queue(BASE), counted=True)
        self._hire(place)

    def dismiss(self) -> None:
        """In good order: their runs are snapshotted and released."""
        for timer in self.asleep:
            timer.join()
        for pid in self.pids:
            os.kill(pid, signal.SIGTERM)
        while self.pids:
            assert self.server.wait(self.pids.pop()) == 0

    def clear_away(self) -> None:
        """Whatever a failure has left."""
        for timer in self.asleep:
            timer.join()
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.server.wait(pid)


def work_through(site: Site, workers: Workers, rng: random.Random) -> None:
    """Submit everything while blows fall, the last operations after the last blow; until all have ended."""
    services, blows = site.services, list(site.blows)
    total = len(RUNS) * 9
    submitted = iter(submit_mixed(services, rng))
    count, left = 0, len(blows)
    began = time.monotonic()
    due, looked = began + rng.uniform(0.1, 0.5), began
    while time.monotonic() < began + LATEST_S:
        now = time.monotonic()
        if now >= due and blows:
            if workers.strike(blows[0]):
                del blows[0]
            due = now + rng.uniform(0.05, 0.4)
        if now >= looked + 2:  # sweeper and consumer of dead letters come on a schedule
            looked = now
            services.dead_letters.consume(services.ports.queues, services.ports.queue_specs)
            services.sweeper.sweep()
        if count < total * (left - len(blows) + 1) // (left + 1):  # something is open at each blow
            count = next(submitted) + 1
        elif count == total and all_ended(services):
            return
        else:
            time.sleep(0.2 if count == total else 0.02)
    raise AssertionError("operations stay open")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", seeds(1))
def test_two_processes_apply_every_operation_once_and_in_order(
    site: Site, server: Server, undisturbed: dict[str, Any], seed: int
) -> None:
    rng = random.Random(seed)
    workers = Workers(site, server, rng)
    try:
        workers.fill()
        work_through(site, workers, rng)
        workers.dismiss()
    finally:
        workers.clear_away()
    assert workers.hired == 2 + site.blows.count("kill")
    assert outcome(site.services) == undisturbed
    assert site.services.dead_letters.list() == []
