"""Waiting for results: woken by the bell, with a slow second look in case a ring was lost."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final, Protocol, TypeVar, runtime_checkable

from tensafe.operations import layout
from tensafe.services import Services

_SECOND_LOOK_S: Final = 0.5
"""A look also authenticates the caller again, and a key is remembered for half a second: a revocation ends
every wait within a second."""
_FIRST_POLL_S: Final = 0.05
_POLL_GROWTH: Final = 1.5
_T = TypeVar("_T")


@runtime_checkable
class Subscribable(Protocol):
    """A bell that is heard from other processes, by a call back; without it, waiting looks again by itself.

    After 50 ms first and then after pauses that grow to half a second: each look is a read of the store.
    """

    def subscribe(self, callback: Callable[[str], None]) -> object:
        """Call `callback(topic)` for every ring, from any thread."""


class ResultWaiter:
    """Lets coroutines wait for a stream's results."""

    def __init__(self, services: Services) -> None:
        self._bell = services.ports.bell
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = isinstance(self._bell, Subscribable)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listen to the bell from now on; called once when the application starts."""
        self._loop = loop
        if isinstance(self._bell, Subscribable):
            self._bell.subscribe(self._rung)

    async def until(
        self,
        stream_id: str,
        look: Callable[[], _T | None],
        timeout_s: float,
        begin: Callable[[], None] | None = None,
    ) -> _T | None:
        """What `look` returns once it is not None, or None after `timeout_s`.

        `begin` is called once, after a first look that found nothing; what it raises ends the wait.
        """
        deadline = time.monotonic() + timeout_s
        event = asyncio.Event()
        waiters = self._waiting[layout.finished_topic(stream_id)]
        waiters.add(event)
        pause_s = _SECOND_LOOK_S if self._woken else _FIRST_POLL_S
        try:
            while True:
                event.clear()
                found = look()
                left_s = deadline - time.monotonic()
                if found is not None or left_s <= 0:
                    return found
                if begin is not None:
                    begin()
                    begin = None
                try:
                    await asyncio.wait_for(event.wait(), min(left_s, pause_s))
                except TimeoutError:
                    pause_s = min(_SECOND_LOOK_S, pause_s * _POLL_GROWTH)
        finally:
            waiters.discard(event)
            if not waiters:
                self._waiting.pop(layout.finished_topic(stream_id), None)

    def _rung(self, topic: str) -> None:
        if self._loop is not None and topic in self._waiting:
            self._loop.call_soon_threadsafe(self._wake, topic)

    def _wake(self, topic: str) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()
