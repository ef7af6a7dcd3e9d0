"""What the scaling of infra/tasks.yaml decides, worked out from its alarms and policies.

Application Auto Scaling itself exists on AWS alone; the arithmetic of its policies is as AWS documents it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.support.alarms import Alarm, alarm
from tests.support.metric_math import worked_out
from tests.support.templates import CORE, TASKS, Template, read_template


@dataclass(frozen=True, slots=True)
class Minute:
    """What CloudWatch has of one minute of a queue and its service; None for what it has not, or not yet."""

    waiting: float | None
    held: float | None
    running: float | None

    def of(self, *names: str) -> dict[str, list[float]]:
        """As an alarm is given them."""
        given: dict[str, float | None] = {name: getattr(self, name) for name in names}
        return {name: [] if value is None else [value] for name, value in given.items()}


@dataclass(frozen=True, slots=True)
class Scaling:
    """The scaling of one role's service: `Scaling("trainer")`."""

    role: str

    @property
    def first(self) -> Alarm:
        """The alarm that starts the first task."""
        return alarm(f"{self.role}-from-zero")

    @property
    def last(self) -> Alarm:
        """The alarm that stops the last one."""
        return alarm(f"{self.role}-to-zero")

    def after_alarm(self, which: Alarm, desired: int) -> int:
        """The desired count once the alarm's action has run: a step policy, within the target's bounds."""
        one = self._resource(_logical(which))
        (action,) = one["AlarmActions"]
        policy = self._resource(action["Ref"])["StepScalingPolicyConfiguration"]
        (step,) = policy["StepAdjustments"]
        change = int(step["ScalingAdjustment"])
        return self._bounded(
            {"ChangeInCapacity": desired + change, "ExactCapacity": change}[policy["AdjustmentType"]]
        )

    def backlog_per_task(
        self, waiting: float | None, held: float | None, running: float | None
    ) -> float | None:
        """What target tracking looks at."""
        metrics = self._tracking()["CustomizedMetricSpecification"]["Metrics"]
        (expression,) = [one["Expression"] for one in metrics if one["ReturnData"]]
        values: Mapping[str, float | None] = {"waiting": waiting, "held": held, "running": running}
        assert {one["Id"] for one in metrics if not one["ReturnData"]} == set(values)
        return worked_out(expression, values)

    def after_tracking(self, waiting: float, held: float, running: int) -> int:
        """The desired count that brings the metric to its target: what runs, times metric over target."""
        backlog = self.backlog_per_task(waiting, held, running)
        assert backlog is not None
        return self._bounded(math.ceil(running * backlog / self._given(self._tracking()["TargetValue"])))

    def counts(self, desired: int, minutes: Sequence[Minute]) -> list[int]:
        """The desired count after each minute, from `desired` on: what alarms and tracking make of them.

        Target tracking goes up after 3 minutes above its target, as its own alarms do; down is left out, for
        it waits longer than the alarm that stops the last. Cooldowns are: none of these counts is a sum.
        """
        found: list[int] = []
        for now in range(1, len(minutes) + 1):
            seen = minutes[:now]
            if self.first.after([one.of("waiting", "held", "running") for one in seen]):
                desired = self.after_alarm(self.first, desired)
            elif self.last.after([one.of("waiting", "held") for one in seen]):
                desired = self.after_alarm(self.last, desired)
            desired = max(desired, self._tracked(desired, seen[-3:]))
            found.append(desired)
        return found

    def _tracked(self, desired: int, seen: Sequence[Minute]) -> int:
        target = self._given(self._tracking()["TargetValue"])
        backlogs = [self.backlog_per_task(one.waiting, one.held, one.running) for one in seen]
        if len(backlogs) < 3 or any(one is None or one <= target for one in backlogs):
            return desired
        return self._bounded(math.ceil(desired * (backlogs[-1] or 0.0) / target))

    def _tracking(self) -> Template:
        policy = self._resource(f"{self.role.capitalize()}Backlog")
        found: Template = policy["TargetTrackingScalingPolicyConfiguration"]
        return found

    def _bounded(self, count: int) -> int:
        target = self._resource(f"{self.role.capitalize()}Scale")
        return min(max(count, self._given(target["MinCapacity"])), self._given(target["MaxCapacity"]))

    def _given(self, value: int | Template) -> int:
        """A number, or the default of the parameter that template.yaml hands on under the same name."""
        if isinstance(value, int):
            return value
        return int(read_template(CORE)["Parameters"][value["Ref"]]["Default"])

    def _resource(self, name: str) -> Template:
        found: Template = read_template(TASKS)["Resources"][name]["Properties"]
        return found


def _logical(which: Alarm) -> str:
    role, _, kind = which.name.partition("-")
    return role.capitalize() + {"from-zero": "First", "to-zero": "Last"}[kind] + "Alarm"
