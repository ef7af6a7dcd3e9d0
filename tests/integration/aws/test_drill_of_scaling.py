"""Scaling: work waits and no task runs, the first is started; nothing waits, the last is stopped.

Application Auto Scaling runs nowhere but on AWS. What its alarms and policies would decide is worked out from
infra/tasks.yaml, on figures of the real queue and the real process; the drill does what they decide.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence

from tensafe.operations.records import OpState
from tests.integration.aws.test_workers import wait_until
from tests.support.aws_operator import AwsOperator
from tests.support.aws_service import AwsService
from tests.support.aws_tasks import EcsServices
from tests.support.drills import drill, in_flight, visible
from tests.support.native import Native, batch
from tests.support.runbooks import Book, followed
from tests.support.scaling import Scaling


def figures(service: AwsService, ecs: EcsServices, role: str) -> dict[str, list[float]]:
    """What CloudWatch would have of one period. Without tasks, Container Insights sends nothing."""
    queue = {"trainer": "TrainQueue", "sampler": "SampleQueue"}[role]
    running = ecs.running(role)
    return {
        "waiting": [visible(service, queue)],
        "held": [in_flight(service, queue)],
        "running": [float(running)] if running else [],
    }


def first_needed(service: AwsService, ecs: EcsServices, role: str) -> bool:
    given = figures(service, ecs, role)
    return Scaling(role).first.in_alarm(given)


def last_idle(service: AwsService, ecs: EcsServices, role: str) -> bool:
    given = figures(service, ecs, role)
    return Scaling(role).last.in_alarm({name: given[name] for name in ("waiting", "held")})


def looked(book: Book, desired: int) -> None:
    """The first section of the runbook."""
    assert "capacityProviders" in book.run("aws ecs describe-capacity-providers")
    assert book.run("aws autoscaling describe-scaling-activities")["Activities"] == []
    counts = {one["serviceName"]: one for one in book.run("aws ecs describe-services")["services"]}
    assert counts["trainer"]["desiredCount"] == desired


@drill("trainer-from-zero", "trainer-to-zero")
def test_trainers(service: AwsService, operator: AwsOperator, ecs: EcsServices, key: str) -> None:
    scaling, native = Scaling("trainer"), Native(service, key)
    run = native.create()
    (pid,) = service.role_pids("trainer")
    assert not last_idle(service, ecs, "trainer")  # it holds a run
    with followed("scaling", operator, GROUP="tensafe") as book:
        try:
            os.kill(pid, signal.SIGTERM)  # as before Spot takes it
            wait_until(lambda: last_idle(service, ecs, "trainer"), 60)
            assert scaling.after_alarm(scaling.last, ecs.desired("trainer")) == 0
            book.run("aws ecs update-service", "0")
            ecs.follow("trainer")
            wait_until(lambda: ecs.running("trainer") == 0, 60)
            assert not first_needed(service, ecs, "trainer")  # nothing waits

            waiting = native.submit(run, "forward_backward", batch())
            wait_until(lambda: first_needed(service, ecs, "trainer"), 20)
            looked(book, desired=0)
            assert scaling.after_alarm(scaling.first, ecs.desired("trainer")) == 1
            book.run("aws ecs update-service", "1")
            ecs.follow("trainer")
            assert native.result(waiting)["metrics"]["loss:sum"] > 0
            assert not first_needed(service, ecs, "trainer")
            given = {name: sum(values) for name, values in figures(service, ecs, "trainer").items()}
            assert scaling.backlog_per_task(**given) == given["waiting"] + given["held"] >= 1
        finally:
            ecs.set_desired("trainer", 1)


def _backlog(given: Mapping[str, Sequence[float]]) -> float:
    return sum([*given["waiting"], *given["held"]])


@drill("sampler-from-zero", "sampler-to-zero")
def test_samplers(service: AwsService, ecs: EcsServices, key: str) -> None:
    """The sampler stands still for one that was never started; its queue is real."""
    scaling, native = Scaling("sampler"), Native(service, key)
    run = native.create()
    asked = {"prompt": [5, 9, 301], "sampling_params": {"max_tokens": 2}}
    wait_until(lambda: last_idle(service, ecs, "sampler"), 60)
    assert scaling.after_alarm(scaling.last, 1) == 0
    with service.paused("sampler"), service.services() as services:
        samples = [native.submit(run, "sample", asked) for _ in range(2)]
        wait_until(lambda: _backlog(figures(service, ecs, "sampler")) >= 2, 60)  # the trainer saves first
        waiting = {"waiting": [2.0], "held": [0.0], "running": []}
        assert scaling.first.in_alarm(waiting)
        assert not scaling.first.in_alarm({**waiting, "running": [1.0]})
        assert scaling.after_alarm(scaling.first, 0) == 1
        stream, seq = samples[0].rsplit(":", 1)
        assert services.outcomes.peek(stream, int(seq)).state is OpState.PENDING
    for one in samples:
        assert native.result(one)["sequences"]
    wait_until(lambda: last_idle(service, ecs, "sampler"), 60)
