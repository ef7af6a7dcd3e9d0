"""`up`: an adapter holder of one machine, started again when it dies or stands still; on AWS, by ECS."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError
from tensafe.local.children import Backoff, Child, ChildSpec, Death
from tensafe.local.logs import rotate_logs
from tensafe_gpu import healthcheck

_NAME: Final = "adapter-holder"
_TICK_S: Final = 0.1
_ROTATE_EVERY_S: Final = 60.0
_STOP_GRACE_S: Final = 10.0


class Watcher:
    """Runs one command over an adapter holder's directory until it is told to stop.

    The process touches the file of `tensafe_gpu.healthcheck`, by default in the directory, as long as the
    thread that accepts connections is there. Once it has done so it is started again, after a pause that
    doubles while it lives less than a minute. Silence is measured by a clock that stands while the machine is
    suspended.
    """

    def __init__(self, command: Sequence[str], data_dir: Path, say: Callable[[str], None]) -> None:
        """`say` is told what happens, in sentences, by the thread that runs."""
        self._alive = Path(os.environ.get(healthcheck.VARIABLE) or data_dir / "alive")
        os.environ[healthcheck.VARIABLE] = str(self._alive)
        spec = ChildSpec(_NAME, tuple(command), os.environ)
        self._logs = data_dir / "logs"
        self._child = Child(spec, self._logs / f"{_NAME}.log", Backoff())
        self._say = say
        self._ready = False
        self._touched_s, self._seen_s = 0.0, 0.0
        """The file's time, and that of this process's clock when it was first seen."""

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop`; from the main thread, with which the process ends.

        Raises ConfigurationError, with what the process said last, if it ends before it ever accepted
        connections.
        """
        rotate_at = 0.0
        try:
            while not stop.wait(_TICK_S):
                self._step()
                if time.monotonic() >= rotate_at:
                    with suppress(OSError):  # a full disk must not take down what still runs
                        rotate_logs(self._logs)
                    rotate_at = time.monotonic() + _ROTATE_EVERY_S
        finally:
            self._stop()

    def _step(self) -> None:
        death = self._child.collect()
        if death is not None:
            self._died(death)
        if not self._child.alive:
            if time.monotonic() >= self._child.restart_at:
                self._start()
        elif self._was_touched():
            if not self._ready:
                self._ready = True
                self._say("ready")
        elif time.monotonic() - self._seen_s > healthcheck.STALE_S:
            self._say("it stands still; killing it")
            self._child.kill()
            self._seen_s = time.monotonic()

    def _start(self) -> None:
        try:
            self._alive.unlink(missing_ok=True)
            self._touched_s, self._seen_s = 0.0, time.monotonic()
            self._child.start(lambda _: None)
        except OSError as error:
            if not self._ready:
                raise ConfigurationError(f"the adapter holder cannot be started: {error}") from error
            pause_s = self._child.backoff.after(0.0)
            self._child.restart_at = time.monotonic() + pause_s
            self._say(f"it cannot be started ({error}); again in {pause_s:.1f} s")

    def _was_touched(self) -> bool:
        """Since the last look, or the start."""
        try:
            touched_s = self._alive.stat().st_mtime
        except OSError:  # absent, or a disk that fails: silence either way
            return False
        if touched_s == self._touched_s:
            return False
        self._touched_s, self._seen_s = touched_s, time.monotonic()
        return True

    def _died(self, death: Death) -> None:
        if not self._ready:
            said = "\n".join(self._child.last_events()) or death.cause
            raise ConfigurationError(f"the adapter holder does not start: {said}")
        pause_s = self._child.backoff.after(death.lived_s)
        self._child.restart_at = time.monotonic() + pause_s
        self._say(f"{death.cause}; starting it again in {pause_s:.1f} s")

    def _stop(self) -> None:
        self._child.terminate()
        deadline = time.monotonic() + _STOP_GRACE_S
        while self._child.collect() is None and self._child.alive:
            if time.monotonic() > deadline:
                self._child.kill()
            time.sleep(_TICK_S)
        with suppress(OSError):
            self._alive.unlink(missing_ok=True)
