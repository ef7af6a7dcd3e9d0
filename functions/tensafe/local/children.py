"""A child process of the supervisor: started in a process group of its own, restarted with a new name."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensafe.local.logs import last_events, open_log
from tensafe.local.owners import kill_processes_of
from tensafe.local.process import OWNER_VARIABLE, SUPERVISOR_PID_VARIABLE

_ENDED: Final = os.WEXITED | os.WNOWAIT | os.WNOHANG


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run. `name` is its role and model: its log is NAME.log, its owners are NAME-<random>."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    queue: str | None = None
    """The queue whose only consumer it is."""


@dataclass(frozen=True, slots=True)
class Death:
    """How an incarnation ended. `code` is negative for a signal."""

    owner: str
    code: int
    lived_s: float

    @property
    def cause(self) -> str:
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"


class Backoff:
    """How long to wait before the next start: doubling, and anew after a life of `stable_s`."""

    def __init__(self, first_s: float = 0.2, longest_s: float = 10.0, stable_s: float = 60.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._stable_s = stable_s
        self._in_a_row = 0

    def after(self, lived_s: float) -> float:
        """Seconds to wait after an incarnation that lived for `lived_s`."""
        self._in_a_row = 1 if lived_s >= self._stable_s else self._in_a_row + 1
        return min(self._first_s * 2.0 ** min(self._in_a_row - 1, 30), self._longest_s)


class Child:
    """At most one incarnation at a time. `start` must be called from a thread that lives as long as the
    child may: the kernel ends the child with the thread that started it."""

    def __init__(self, spec: ChildSpec, log_path: Path, backoff: Backoff) -> None:
        self.spec = spec
        self.log_path = log_path
        self.backoff = backoff
        self.restart_at: float = 0.0
        """On the monotonic clock, while no incarnation is alive."""
        self.owner = ""
        self.deaths = 0
        """Of all its incarnations."""
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._log_offset = 0

    @property
    def alive(self) -> bool:
        """An incarnation is there that `collect` has not reported as dead."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, announce: Callable[[str], None]) -> None:
        """Start a new incarnation; `announce` is told its owner name first. Raises OSError."""
        self.owner = f"{self.spec.name}-{secrets.token_hex(8)}"
        announce(self.owner)
        environment = {
            **self.spec.environment,
            OWNER_VARIABLE: self.owner,
            SUPERVISOR_PID_VARIABLE: str(os.getpid()),
        }
        log_fd = open_log(self.log_path)
        try:
            self._log_offset = os.fstat(log_fd).st_size
            self._started_at = time.monotonic()
            self._process = subprocess.Popen(  # noqa: S603 - our own commands, no shell
                self.spec.command,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                env=environment,
                start_new_session=True,
            )
        finally:
            os.close(log_fd)

    def collect(self) -> Death | None:
        """If the incarnation has died: kill what is left of it, and tell how it ended."""
        process = self._process
        if process is None or not _has_ended(process.pid):
            return None
        # Before it is reaped, while its id can name no other group.
        _signal_group(process.pid, signal.SIGKILL)
        code = process.wait()
        self._process = None
        self.deaths += 1
        kill_processes_of({self.owner})
        return Death(self.owner, code, time.monotonic() - self._started_at)

    def terminate(self) -> None:
        """Ask the process to stop in good order; it passes the word to its own children."""
        if self._process is not None and not _has_ended(self._process.pid):
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL for the whole group."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)

    def last_events(self) -> list[str]:
        """What this incarnation logged last."""
        return last_events(self.log_path, since=self._log_offset)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, _ENDED) is not None


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)
