"""What a step of the drain loop looks at: each look, at the queue or at a run's log, is a call to pay for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tensafe.storage.ports import Bell
from tensafe_gpu.trainer.hot_run import HotRun


class Looks:
    """After a step that worked: at the runs that did, for what has come behind.

    At the queue and at every run when nothing worked, when the bell has rung, and every `every_s`.
    """

    def __init__(self, bell: Bell, topic: str, every_s: float, clock: Callable[[], float]) -> None:
        self._bell = bell
        self._topic = topic
        self._every_s = every_s
        self._clock = clock
        self._worked: list[HotRun] = []
        self._rung = 0
        self._looked_s = float("-inf")

    def again(self, held: Iterable[HotRun]) -> list[HotRun] | None:
        """Those of the held runs that this step looks at; None: at everything, and that counts as done."""
        worked = {id(run) for run in self._worked}
        at_work = [run for run in held if id(run) in worked]
        rung, now = self._bell.count(self._topic), self._clock()
        if at_work and rung == self._rung and now - self._looked_s < self._every_s:
            return at_work
        self._rung, self._looked_s = rung, now
        return None

    def more_wait(self) -> None:
        """The queue may have more than was taken: the next step looks at it."""
        self._looked_s = float("-inf")

    def worked(self, runs: list[HotRun]) -> bool:
        """These did, in the step that ends; whether there are any."""
        self._worked = runs
        return bool(runs)
