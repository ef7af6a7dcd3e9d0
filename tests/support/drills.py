"""What the drills of the alarms have in common. A drill names its alarms: `@drill("sweep-failures")`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from tests.support.alarms import Watched, alarm
from tests.support.aws_service import AwsService

_F = TypeVar("_F", bound=Callable[..., Any])
AWAY: Final = {"AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:9"}
"""Variables with which the table is out of a function's reach."""


def drill(*names: str) -> Callable[[_F], _F]:
    """Marks the drill of these alarms (`tests/unit/infra/test_drills_complete.py` looks for it)."""
    for name in names:
        alarm(name)
    return lambda function: function


def physical_id(service: AwsService, logical_id: str) -> str:
    return service.stack.deployment.resources()[logical_id]


def attributes(service: AwsService, logical_id: str) -> Mapping[str, str]:
    sqs = service.stack.emulator.client("sqs")
    answer = sqs.get_queue_attributes(QueueUrl=physical_id(service, logical_id), AttributeNames=["All"])
    found: dict[str, str] = answer["Attributes"]
    return found


def visible(service: AwsService, logical_id: str) -> float:
    """What CloudWatch calls ApproximateNumberOfMessagesVisible, by SQS's own name."""
    return float(attributes(service, logical_id)["ApproximateNumberOfMessages"])


def in_flight(service: AwsService, logical_id: str) -> float:
    """What CloudWatch calls ApproximateNumberOfMessagesNotVisible."""
    return float(attributes(service, logical_id)["ApproximateNumberOfMessagesNotVisible"])


def letters(service: AwsService, logical_id: str) -> dict[str, list[float]]:
    """What the alarms of a dead queue watch, by their names for it."""
    return {"waiting": [visible(service, logical_id)], "held": [in_flight(service, logical_id)]}


def counted(service: AwsService, watched: Watched, since_s: float) -> list[float]:
    """The metric's sums by minute, as the emulator's CloudWatch has counted a function's since."""
    (dimension,) = watched.dimensions.items()
    name = dimension[1]["Fn::Sub"].replace("${ServiceName}", "tensafe")
    answer = service.stack.emulator.client("cloudwatch").get_metric_statistics(
        Namespace=watched.namespace,
        MetricName=watched.metric,
        Dimensions=[{"Name": dimension[0], "Value": name}],
        Statistics=[watched.statistic],
        Period=60,
        StartTime=datetime.fromtimestamp(since_s, UTC),
        EndTime=datetime.now(UTC) + timedelta(minutes=1),
    )
    return [float(one[watched.statistic]) for one in answer["Datapoints"]]


@contextmanager
def deployed_with(service: AwsService, logical_id: str, **variables: str) -> Iterator[Callable[[], None]]:
    """A function with other variables; what the block is given deploys what was there before."""
    functions = service.stack.emulator.client("lambda")
    name = physical_id(service, logical_id)
    before = service.stack.deployment.function_environment(logical_id)

    def deploy(chosen: Mapping[str, str]) -> None:
        functions.update_function_configuration(FunctionName=name, Environment={"Variables": dict(chosen)})

    deploy({**before, **variables})
    try:
        yield lambda: deploy(before)
    finally:
        deploy(before)


@contextmanager
def concurrency_kept(service: AwsService, logical_id: str) -> Iterator[None]:
    """After the block the function may run as often at once as before."""
    functions, name = service.stack.emulator.client("lambda"), physical_id(service, logical_id)
    before = functions.get_function_concurrency(FunctionName=name).get("ReservedConcurrentExecutions")
    try:
        yield
    finally:
        if before is None:  # the emulator leaves the template's number out
            functions.delete_function_concurrency(FunctionName=name)
        else:
            functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=before)


@contextmanager
def unconsumed(service: AwsService, queue: str) -> Iterator[None]:
    """In the block nothing of the queue reaches its function."""
    functions = service.stack.emulator.client("lambda")
    mappings = functions.list_event_source_mappings()["EventSourceMappings"]
    (mapping,) = [one["UUID"] for one in mappings if one["EventSourceArn"].endswith(queue)]
    functions.update_event_source_mapping(UUID=mapping, Enabled=False)
    try:
        yield
    finally:
        functions.update_event_source_mapping(UUID=mapping, Enabled=True)


@contextmanager
def again_after(service: AwsService, logical_id: str, visibility_s: int) -> Iterator[None]:
    """In the block a letter that was handed back comes again after so long, and not after six minutes."""
    sqs, url = service.stack.emulator.client("sqs"), physical_id(service, logical_id)
    before = attributes(service, logical_id)["VisibilityTimeout"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": str(visibility_s)})
    try:
        yield
    finally:
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": before})


def now_ms() -> int:
    return int(time.time() * 1000)
