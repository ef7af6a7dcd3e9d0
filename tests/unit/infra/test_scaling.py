"""What scaling does, worked out from infra/tasks.yaml: from zero, with the backlog, and to zero."""

from __future__ import annotations

import pytest

from tests.support.metric_math import worked_out
from tests.support.scaling import Minute, Scaling
from tests.support.templates import TASKS, read_template, resources

ROLES = [Scaling("trainer"), Scaling("sampler")]


@pytest.mark.parametrize("scaling", ROLES, ids=lambda one: one.role)
def test_from_zero_and_back(scaling: Scaling) -> None:
    no_task: list[float] = []  # Container Insights sends nothing of a service without tasks
    for running in (no_task, [0.0]):
        assert scaling.first.in_alarm({"waiting": [3.0], "held": [0.0], "running": running})
        assert not scaling.first.in_alarm({"waiting": [0.0], "held": [0.0], "running": running})
        assert not scaling.first.in_alarm({"waiting": [3.0], "held": [1.0], "running": running})
    assert not scaling.first.in_alarm({"waiting": [3.0], "held": [0.0], "running": [1.0]})
    assert not scaling.first.in_alarm({"waiting": [], "held": [], "running": []})
    assert scaling.after_alarm(scaling.first, 0) == 1
    assert scaling.last.in_alarm({"waiting": [0.0], "held": [0.0]})
    for waiting, held in ((1.0, 0.0), (0.0, 1.0)):
        assert not scaling.last.in_alarm({"waiting": [waiting], "held": [held]})
    assert not scaling.last.in_alarm({"waiting": [], "held": []})  # without figures nothing is stopped
    assert scaling.after_alarm(scaling.last, 2) == 0


@pytest.mark.parametrize(("scaling", "target"), [(ROLES[0], 4), (ROLES[1], 64)], ids=["trainer", "sampler"])
def test_the_backlog_of_each_task(scaling: Scaling, target: int) -> None:
    assert scaling.backlog_per_task(6, 2, 2) == 4.0
    assert scaling.backlog_per_task(6, 2, None) is None
    assert scaling.backlog_per_task(6, 2, 0) == 8.0
    assert scaling.after_tracking(target, 0, 1) == 1
    assert scaling.after_tracking(target, 1, 1) == 2
    assert scaling.after_tracking(target, target, 2) == 2
    assert scaling.after_tracking(100 * target, 0, 1) == 2  # MaxTrainers, MaxSamplers
    assert scaling.after_tracking(100 * target, 0, 0) == 0  # which is why a step starts the first


COLD, LATE = Minute(20.0, 0.0, None), Minute(20.0, 2.0, None)
EMPTY, SILENT = Minute(0.0, 0.0, 2.0), Minute(None, None, None)


@pytest.mark.parametrize("scaling", ROLES, ids=lambda one: one.role)
def test_a_cold_start_is_one_task_however_long_it_takes(scaling: Scaling) -> None:
    counts = scaling.counts(0, [COLD] * 30)
    assert counts[0] == 0  # one minute may be one whose figures are late
    assert counts[1:] == [1] * 29


def test_the_backlog_decides_once_the_first_task_runs() -> None:
    trainers, working = ROLES[0], Minute(12.0, 8.0, 1.0)
    assert trainers.counts(0, [COLD] * 10 + [working] * 3)[-4:] == [1, 1, 1, 2]
    assert trainers.counts(0, [COLD] * 10 + [Minute(0.0, 4.0, 1.0)] * 30)[-1] == 1


@pytest.mark.parametrize("scaling", ROLES, ids=lambda one: one.role)
@pytest.mark.parametrize("late", [LATE, SILENT, Minute(20.0, None, None), Minute(None, None, 2.0)])
def test_figures_that_are_late_take_nothing_away(scaling: Scaling, late: Minute) -> None:
    assert scaling.counts(2, [Minute(20.0, 2.0, 2.0)] + [late] * 60) == [2] * 61


@pytest.mark.parametrize("scaling", ROLES, ids=lambda one: one.role)
def test_a_minute_without_figures_between_two_messages_takes_nothing_away(scaling: Scaling) -> None:
    idle_for_a_moment = Minute(1.0, 0.0, None)
    assert scaling.counts(2, [EMPTY, idle_for_a_moment, EMPTY, EMPTY, idle_for_a_moment]) == [2] * 5


@pytest.mark.parametrize("scaling", ROLES, ids=lambda one: one.role)
def test_the_last_is_stopped_after_a_quarter_of_an_hour_without_work(scaling: Scaling) -> None:
    assert scaling.counts(2, [EMPTY] * 15) == [2] * 14 + [0]
    for between in (SILENT, LATE, Minute(0.0, 1.0, 2.0)):
        assert scaling.counts(2, [*[EMPTY] * 8, between, *[EMPTY] * 14]) == [2] * 23
    assert scaling.counts(0, [EMPTY] * 15 + [COLD] * 2)[-1] == 1


def test_an_update_of_the_stack_leaves_the_count_to_scaling() -> None:
    services = resources(read_template(TASKS), "AWS::ECS::Service")
    targets = resources(read_template(TASKS), "AWS::ApplicationAutoScaling::ScalableTarget")
    scaled = {
        one["ResourceId"]["Fn::Sub"].rpartition("${")[2].removesuffix(".Name}") for one in targets.values()
    }
    assert scaled == {"TrainerService", "SamplerService"}
    assert [name for name, one in services.items() if "DesiredCount" in one] == ["AdapterHolderService"]


def test_what_is_missing_stays_missing_unless_it_is_filled() -> None:
    assert worked_out("a + b", {"a": 1.0, "b": None}) == 1.0
    assert worked_out("a + b", {"a": None, "b": None}) is None
    assert worked_out("a / b", {"a": 1.0, "b": None}) is None
    assert worked_out("a - FILL(b, 0)", {"a": 1.0, "b": None}) == 1.0
    assert worked_out("IF(a > 0 AND FILL(b, 0) < 1, 1, 0)", {"a": 1.0, "b": None}) == 1.0
    assert worked_out("IF(b > 0, 1, 0)", {"b": None}) is None
    for other in ("RATE(a)", "a ** 2", "-a", "f(a)(b)"):
        with pytest.raises(ValueError, match="not worked out"):
            worked_out(other, {"a": 1.0})
    with pytest.raises(KeyError):
        worked_out("c", {})
