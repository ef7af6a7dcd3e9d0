"""What the scaling of infra/tasks.yaml decides, worked out from its alarms and policies.

Application Auto Scaling itself exists on AWS alone; the arithmetic of its policies is as AWS documents it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.alarms import Alarm, alarm
from tests.support.metric_math import worked_out
from tests.support.templates import TASKS, Template, read_template


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

    def backlog_per_task(self, waiting: float, held: float, running: float | None) -> float | None:
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

    def _tracking(self) -> Template:
        policy = self._resource(f"{self.role.capitalize()}Backlog")
        found: Template = policy["TargetTrackingScalingPolicyConfiguration"]
        return found

    def _bounded(self, count: int) -> int:
        target = self._resource(f"{self.role.capitalize()}Scale")
        return min(max(count, self._given(target["MinCapacity"])), self._given(target["MaxCapacity"]))

    def _given(self, value: int | Template) -> int:
        """A number, or a parameter's default."""
        if isinstance(value, int):
            return value
        return int(read_template(TASKS)["Parameters"][value["Ref"]]["Default"])

    def _resource(self, name: str) -> Template:
        found: Template = read_template(TASKS)["Resources"][name]["Properties"]
        return found


def _logical(which: Alarm) -> str:
    role, _, kind = which.name.partition("-")
    return role.capitalize() + {"from-zero": "First", "to-zero": "Last"}[kind] + "Alarm"
