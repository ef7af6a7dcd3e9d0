"""Ports whose k-th call that changes or unlocks something is the last thing that its process does."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from typing import Any

from tensafe.services import Ports

FATAL = {
    "items": {"write", "write_relaxed"},
    "blobs": {"put", "delete"},
    "queues": {"send", "receive", "extend", "delete"},
    "keyring": {"wrap", "unwrap"},
    "anchors": {"put"},
}


class Killer:
    """Counts calls of all ports together; at `kill_at` the process kills itself with SIGKILL.

    `after`: when the call has had its effect and its answer is lost; else before it has any.
    """

    def __init__(self, kill_at: int | None, *, after: bool) -> None:
        self.calls = 0
        self._kill_at = kill_at
        self._after = after
        self._lock = threading.Lock()

    def ports(self, ports: Ports) -> Ports:
        """The same ports under the knife."""
        wrapped = {name: _Killing(self, getattr(ports, name), fatal) for name, fatal in FATAL.items()}
        return replace(ports, **wrapped)

    def around(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self.calls += 1
            mine = self.calls == self._kill_at
        if mine and not self._after:
            die()
        result = call(*args, **kwargs)
        if mine:
            die()
        return result


def die() -> None:
    """As `kill -9`: no handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Killing:
    def __init__(self, killer: Killer, inner: Any, fatal: set[str]) -> None:
        self._killer = killer
        self._inner = inner
        self._fatal = fatal

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name not in self._fatal:
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._killer.around(attribute, *args, **kwargs)

        return call
