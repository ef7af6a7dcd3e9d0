"""What becomes of work whose trainer dies, through real queues, and is continued."""

from __future__ import annotations

import time
from collections.abc import Callable

from tensafe.operations.records import OpState
from tests.support.aws_service import AwsService
from tests.support.native import Native, batch, example

SLOW = batch(*[example([5 + (i * j) % 250 for j in range(1, 200)]) for i in range(1, 250)])
"""A forward_backward of a few seconds."""


def wait_until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_trainer_killed_in_mid_operation_is_followed_by_another(service: AwsService, key: str) -> None:
    native = Native(service, key)
    run = native.create()
    loss = native.do(run, "forward_backward", SLOW)["metrics"]["loss:sum"]
    slow = native.submit(run, "forward_backward", SLOW)
    behind = native.submit(run, "optim_step", {"learning_rate": 1e-3})
    with service.services() as services:
        stream, seq = slow.rsplit(":", 1)
        running = lambda: services.outcomes.peek(stream, int(seq)).state is OpState.RUNNING  # noqa: E731
        wait_until(running)
        killed = service.kill("trainer")
        assert native.result(slow)["metrics"]["loss:sum"] == loss
        native.result(behind)
        log = services.outcomes.operations(stream)
        assert [one.state for one in log] == [OpState.COMPLETED] * len(log)
        assert services.outcomes.peek(stream, int(seq)).tries == 2
    assert service.role_pids("trainer") != [killed]
