"""Ports whose k-th call that changes or unlocks something is the last thing that its process does."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from tensafe.services import Ports
from tensafe.storage.anchors import Mark
from tensafe.storage.ports import Put, Write

FATAL = {
    "items": {"write", "write_relaxed", "scrub"},
    "blobs": {"put", "delete"},
    "queues": {"send", "receive", "extend", "delete"},
    "keyring": {"wrap", "unwrap"},
    "anchors": {"put"},
}
STAGES: Final = ("reserving", "reserved", "anchored", "drawn", "applied", "committed")
"""Of a private step: before its charge is written, after that, after the anchor, after the noise was drawn,
before the transaction that commits result and charge, and after it. Of a dealt run the opening is charged
as a step is, and so is each deal."""
GIVING_UP: Final = ("abandoning", "abandoned")
"""Before and after the write that ends a deal without its step."""


class Killer:
    """Counts calls of all ports together; at `kill_at` the process kills itself with SIGKILL.

    `after`: when the call has had its effect and its answer is lost; else before it has any. `stage`: such
    as "anchored:2", a name of STAGES and at which of the process' private steps.
    """

    def __init__(self, kill_at: int | None, *, after: bool, stage: str | None = None) -> None:
        self.calls = 0
        self._kill_at = kill_at
        self._after = after
        self._stage = stage
        self._reached: Counter[str] = Counter()
        self._lock = threading.Lock()

    def ports(self, ports: Ports) -> Ports:
        """The same ports under the knife."""
        wrapped = {name: _Killing(self, getattr(ports, name), fatal) for name, fatal in FATAL.items()}
        return replace(ports, **wrapped)

    def wrapped(self, port: Any, fatal: set[str]) -> Any:
        """One port of another room under the same knife."""
        return _Killing(self, port, fatal)

    def drawing(self, release: Callable[..., Any]) -> Callable[..., Any]:
        """What adds the noise, under the knife."""

        def drawn(*args: Any, **kwargs: Any) -> Any:
            result = release(*args, **kwargs)
            self.reach("drawn")
            return result

        return drawn

    def around(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        before, after = _stages(args)
        with self._lock:
            self.calls += 1
            mine = self.calls == self._kill_at
        if mine and not self._after:
            die()
        self.reach(before)
        result = call(*args, **kwargs)
        self.reach(after)
        if mine:
            die()
        return result

    def reach(self, stage: str | None) -> None:
        """The end, if it was to be at this stage."""
        if stage is not None:
            self._reached[stage] += 1
            if f"{stage}:{self._reached[stage]}" == self._stage:
                die()


def _stages(args: Sequence[Any]) -> tuple[str | None, str | None]:
    """The stages of a private step that lie before and after a call with these arguments."""
    if not args:
        return None, None
    if isinstance(args[0], Mark):
        return None, "anchored" if args[0].position > 0 else None
    writes: Sequence[Write] = args[0] if isinstance(args[0], list) else []
    rows = [one for one in writes if isinstance(one, Put) and one.key.sort.startswith("row/")]
    if not rows:
        return GIVING_UP if any(_gives_up(one) for one in writes) else (None, None)
    return ("reserving", "reserved") if rows[0].body["state"] == "reserved" else ("applied", "committed")


def _gives_up(write: Write) -> bool:
    deals = write.body.get("deals") if isinstance(write, Put) and write.key.sort.startswith("run/") else None
    return isinstance(deals, dict) and deals["last"] == "abandoned"


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
