"""Runs sequences of storage calls at every interleaving of their calls, one after the other.

Calls that cannot notice each other's order (two reads, or calls on two ports) are tried in one order only:
sleep sets, Godefroid, "Partial-Order Methods for the Verification of Concurrent Systems", chapter 5.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT_S = 20.0
_READS = {"get", "get_all", "query", "head", "depth"}
Call = tuple[str, bool]
"""The port that is called, and whether the call only reads."""


@dataclass
class Exploration:
    """A depth-first walk over schedules: `next` says whether there is another one to run."""

    schedule: list[int] = field(default_factory=list)
    made: list[tuple[int, int]] = field(default_factory=list)
    begun: bool = False

    def next(self) -> bool:
        if not self.begun:
            self.begun = True
            return True
        while self.made and self.made[-1][0] + 1 == self.made[-1][1]:
            self.made.pop()
        if not self.made:
            return False
        self.schedule = [choice for choice, _ in self.made[:-1]] + [self.made[-1][0] + 1]
        self.made = []
        return True


class Turns:
    """Actors run in threads; each stops before every storage call until it is given a turn."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, Call] = {}
        self._running: set[str] = set()
        self._free = False
        self._failures: list[BaseException] = []

    def port(self, actor: str, name: str, inner: Any) -> Any:
        """The port as `actor` sees it."""
        return _Stepped(self, actor, name, inner)

    def pause(self, actor: str, call: Call) -> None:
        """Wait for a turn. A thread that is no actor passes."""
        with self._changed:
            if self._free or actor not in self._running:
                return
            self._waiting[actor] = call
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: actor not in self._waiting, _TIMEOUT_S)

    def run(self, actors: dict[str, Callable[[], object]], walk: Exploration) -> bool:
        """Run one schedule; False if it was found to be like another one and was not followed to its end."""
        self._running = set(actors)
        threads = [threading.Thread(target=self._act, args=pair, daemon=True) for pair in actors.items()]
        for thread in threads:
            thread.start()
        whole = self._follow(walk)
        for thread in threads:
            thread.join(_TIMEOUT_S)
        if self._failures:
            raise self._failures[0]
        return whole

    def _follow(self, walk: Exploration) -> bool:
        asleep: set[str] = set()
        while pending := self._pending():
            options = [actor for actor in sorted(pending) if actor not in asleep]
            if not options:
                with self._changed:
                    self._free = True
                    self._waiting.clear()
                    self._changed.notify_all()
                return False
            place = len(walk.made)
            choice = walk.schedule[place] if place < len(walk.schedule) else 0
            walk.made.append((choice, len(options)))
            chosen = options[choice]
            asleep |= set(options[:choice])
            asleep = {actor for actor in asleep if _commute(pending[actor], pending[chosen])}
            with self._changed:
                del self._waiting[chosen]
                self._changed.notify_all()
        return True

    def _pending(self) -> dict[str, Call]:
        """Who waits with which call, once nobody is between two calls."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._running <= self._waiting.keys(), _TIMEOUT_S)
            return dict(self._waiting)

    def _act(self, name: str, actor: Callable[[], object]) -> None:
        try:
            actor()
        except BaseException as failure:  # noqa: BLE001 - raised again by `run`
            self._failures.append(failure)
        finally:
            with self._changed:
                self._running.discard(name)
                self._changed.notify_all()


def _commute(one: Call, other: Call) -> bool:
    return one[0] != other[0] or (one[1] and other[1])


class _Stepped:
    def __init__(self, turns: Turns, actor: str, name: str, inner: Any) -> None:
        self._turns = turns
        self._actor = actor
        self._name = name
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._turns.pause(self._actor, (self._name, name in _READS))
            return method(*args, **kwargs)

        return call
