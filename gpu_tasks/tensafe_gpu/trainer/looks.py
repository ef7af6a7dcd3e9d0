"""What a step of the drain loop looks at: each look, at the queue or at a run's log, is a call to pay for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from tensafe.storage.ports import Bell
from tensafe_gpu.trainer.hot_run import HotRun

RECENT_S: Final = 5.0
"""A client that trains comes again within this time; its next operation should not wait for a look."""


class Looks:
    """After a step that worked: at the runs that did so lately, for what has come behind.

    At the queue and at every run when nothing worked, when the bell has rung, and every `every_s`.
    """

    def __init__(self, bell: Bell, topic: str, every_s: float, clock: Callable[[], float]) -> None:
        self._bell = bell
        self._topic = topic
        self._every_s = every_s
        self._clock = clock
        self._worked_s: dict[str, float] = {}
        """When a run worked last, by its id."""
        self._at_work = False
        self._rung = 0
        self._looked_s = float("-inf")

    def again(self, held: Iterable[HotRun]) -> list[HotRun] | None:
        """Those of the held runs that this step looks at; None: at everything, and that counts as done."""
        rung, now = self._bell.count(self._topic), self._clock()
        if self._at_work and rung == self._rung and now - self._looked_s < self._every_s:
            return [run for run in held if now - self._worked_s.get(_name(run), -RECENT_S) < RECENT_S]
        self._rung, self._looked_s = rung, now
        return None

    def more_wait(self) -> None:
        """The queue may have more than was taken: the next step looks at it."""
        self._looked_s = float("-inf")

    def worked(self, runs: Sequence[HotRun]) -> bool:
        """These did, in the step that ends; whether there are any."""
        now = self._clock()
        self._worked_s = {name: at for name, at in self._worked_s.items() if now - at < RECENT_S}
        self._worked_s |= {_name(run): now for run in runs}
        self._at_work = bool(runs)
        return self._at_work


def _name(run: HotRun) -> str:
    return run.stream.stream_id
