"""What scaling does, worked out from infra/tasks.yaml: from zero, with the backlog, and to zero."""

from __future__ import annotations

import pytest

from tests.support.metric_math import worked_out
from tests.support.scaling import Scaling

ROLES = [Scaling("trainer"), Scaling("sampler")]


@pytest.mark.parametrize("scaling", ROLES, ids=lambda one: one.role)
def test_from_zero_and_back(scaling: Scaling) -> None:
    no_task: list[float] = []  # Container Insights sends nothing of a service without tasks
    for running in (no_task, [0.0]):
        assert scaling.first.in_alarm({"waiting": [3.0], "running": running})
        assert not scaling.first.in_alarm({"waiting": [0.0], "running": running})
    assert not scaling.first.in_alarm({"waiting": [3.0], "running": [1.0]})
    assert not scaling.first.in_alarm({"waiting": [], "running": []})
    assert scaling.after_alarm(scaling.first, 0) == 1
    assert scaling.last.in_alarm({"waiting": [0.0], "held": [0.0]})
    for waiting, held in ((1.0, 0.0), (0.0, 1.0)):
        assert not scaling.last.in_alarm({"waiting": [waiting], "held": [held]})
    assert not scaling.last.in_alarm({"waiting": [], "held": []})  # without figures nothing is stopped
    assert scaling.after_alarm(scaling.last, 2) == 0


@pytest.mark.parametrize(("scaling", "target"), [(ROLES[0], 4), (ROLES[1], 64)], ids=["trainer", "sampler"])
def test_the_backlog_of_each_task(scaling: Scaling, target: int) -> None:
    assert scaling.backlog_per_task(6, 2, 2) == 4.0
    assert scaling.backlog_per_task(6, 2, None) == 8.0
    assert scaling.backlog_per_task(6, 2, 0) == 8.0
    assert scaling.after_tracking(target, 0, 1) == 1
    assert scaling.after_tracking(target, 1, 1) == 2
    assert scaling.after_tracking(target, target, 2) == 2
    assert scaling.after_tracking(100 * target, 0, 1) == 2  # MaxTrainers, MaxSamplers
    assert scaling.after_tracking(100 * target, 0, 0) == 0  # which is why a step starts the first


def test_what_is_missing_stays_missing_unless_it_is_filled() -> None:
    assert worked_out("a + b", {"a": 1.0, "b": None}) is None
    assert worked_out("a - FILL(b, 0)", {"a": 1.0, "b": None}) == 1.0
    assert worked_out("IF(a > 0 AND FILL(b, 0) < 1, 1, 0)", {"a": 1.0, "b": None}) == 1.0
    assert worked_out("IF(b > 0, 1, 0)", {"b": None}) is None
    for other in ("RATE(a)", "a ** 2", "-a", "f(a)(b)"):
        with pytest.raises(ValueError, match="not worked out"):
            worked_out(other, {"a": 1.0})
    with pytest.raises(KeyError):
        worked_out("c", {})
