"""Ports with faults, without threads or clocks of their own: a seed decides, so a failure can be repeated."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensafe.storage.ports import Message, Queues, StaleReceipt

CHANGES = {
    "items": {"write", "write_relaxed"},
    "blobs": {"put", "delete"},
    "queues": {"send", "receive", "extend", "delete"},
}


class Killed(BaseException):
    """A worker is dead: no handler of it may run on."""


@dataclass
class Fate:
    """What happens around a worker's calls. `before` is called with each of them, and may raise Killed."""

    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None

    def around(self, ports: Mapping[str, Any]) -> dict[str, Any]:
        """The ports whose calls change something, under this fate."""
        return {name: _Fated(self, ports[name], CHANGES[name]) for name in CHANGES}


class _Fated:
    def __init__(self, fate: Fate, inner: Any, changes: set[str]) -> None:
        self._fate, self._inner, self._changes = fate, inner, changes

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name not in self._changes:
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            self._fate.before()
            result = attribute(*args, **kwargs)
            self._fate.after()
            return result

        return call


@dataclass
class BadQueue:
    """Loses, doubles and holds back what is sent, and knows what is in flight."""

    inner: Queues
    rng: random.Random
    lost: float = 0.0
    doubled: float = 0.0
    held_back: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: {"lost": 0, "doubled": 0, "held back": 0})
    _held: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    _in_flight: list[tuple[str, str]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def send(self, *args: Any, **kwargs: Any) -> None:
        draw = self.rng.random()
        if draw < self.lost:
            self.counts["lost"] += 1
        elif draw < self.lost + self.held_back:
            self.counts["held back"] += 1
            self._held.append((args, kwargs))
        else:
            self.inner.send(*args, **kwargs)
            if self.rng.random() < self.doubled:
                self.counts["doubled"] += 1
                self.inner.send(*args, **{**kwargs, "dedup_id": None})
        if self._held and self.rng.random() < 0.5:
            late_args, late = self._held.pop(self.rng.randrange(len(self._held)))
            self.inner.send(*late_args, **late)

    def receive(self, queue: str, **kwargs: Any) -> list[Message]:
        messages: list[Message] = self.inner.receive(queue, **kwargs)
        self._in_flight += [(queue, message.receipt) for message in messages]
        return messages

    def time_out(self) -> None:
        """The visibility of everything in flight runs out."""
        flying, self._in_flight = self._in_flight, []
        for queue, receipt in flying:
            try:
                self.inner.extend(queue, receipt, 0)
            except StaleReceipt:
                continue
