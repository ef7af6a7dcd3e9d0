"""template.yaml as it stands comes up on an emulator: routes, authorizer, queues and their consumer.

The functions are probes that answer with what reached them. The service's own handlers are tested elsewhere.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tensafe.operations.doorbell import queue_specs
from tests.support.ministack import Deployment, deploy, emulator_of_aws, gap
from tests.support.templates import OBSERVABILITY, read_template, resources
from tools.api_routes import application_routes
from tools.stack_parameters import stack_parameters

pytestmark = [pytest.mark.slow, pytest.mark.emulator]
BASE_MODEL = "test/tiny"
PROBES = {
    "api": "return {'statusCode': 200, 'body': json.dumps([event['routeKey'], "
    "event['requestContext'].get('authorizer')])}",
    "authorizer": "return {'isAuthorized': event['headers'].get('x-api-key') == 'known', "
    "'context': {'tenant': 'acme'}}",
    # Every second one is handed back.
    "dead_letters": "return {'batchItemFailures': [{'itemIdentifier': one['messageId']} "
    "for one in event['Records'] if one['body'] == 'bad']}",
    "sweeper": "return {}",
}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("ministack")
    package = folder / "package"
    (package / "tensafe/lambdas").mkdir(parents=True)
    for name, line in PROBES.items():
        text = f"import json\n\ndef handler(event, context):\n    {line}\n"
        (package / f"tensafe/lambdas/{name}.py").write_text(text)
    with emulator_of_aws(folder) as emulator:
        yield deploy(emulator, package, stack_parameters(BASE_MODEL, "[]"))


def ask(deployed: Deployment, route: str, key: str | None = None) -> tuple[int, Any]:
    method, path = route.split(" ")
    connection = http.client.HTTPConnection(deployed.emulator.address, deployed.emulator.port, timeout=30)
    headers = {"Host": deployed.api_host} | ({"X-API-Key": key} if key else {})
    connection.request(method, path, body=b"{}" if method in ("POST", "PUT") else None, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, json.loads(body)


def plain(route: str) -> str:
    """The route, with names where its parameters stand."""
    return route.replace("{", "").replace("+}", "/more").replace("}", "")


def test_every_route_of_the_application_reaches_the_function(deployed: Deployment) -> None:
    wrong = []
    for route, needs_credential in application_routes().items():
        status, body = ask(deployed, plain(route), "known")
        authorizer = {"lambda": {"tenant": "acme"}} if needs_credential else None
        if (status, body) != (200, [route, authorizer]):
            wrong.append((route, status, body))
    assert wrong == []


def test_without_a_known_credential_nothing_reaches_it(deployed: Deployment) -> None:
    asked = [
        (route, key) for route, needs in application_routes().items() if needs for key in (None, "other")
    ]
    answers = {ask(deployed, plain(route), key)[0] for route, key in asked[::7]}
    assert answers <= {401, 403}


def test_what_is_no_route_is_not_found(deployed: Deployment) -> None:
    assert ask(deployed, "GET /v1/nothing", "known")[0] == 404
    assert ask(deployed, "DELETE /healthz", "known")[0] == 404


def test_the_queues_are_where_the_service_looks_for_them(deployed: Deployment) -> None:
    sqs = deployed.emulator.client("sqs")
    prefix = deployed.function_environment("ApiFunction")["TENSAFE_QUEUE_PREFIX"]
    for spec in queue_specs([BASE_MODEL]):
        suffix = ".fifo" if spec.fifo else ""
        for name in (spec.name, spec.dead_queue):
            assert sqs.get_queue_url(QueueName=f"{prefix}{name}{suffix}")["QueueUrl"]


def test_dead_letters_are_consumed_one_by_one(deployed: Deployment) -> None:
    sqs, queue = deployed.emulator.client("sqs"), deployed.resources()["SampleDeadQueue"]
    for body in ("good", "bad", "good"):
        sqs.send_message(QueueUrl=queue, MessageBody=body)
    deadline = time.monotonic() + 30
    left = None
    while left != (0, 1) and time.monotonic() < deadline:
        time.sleep(0.2)
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        counts = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
        left = tuple(int(counts[name]) for name in names)
    assert left == (0, 1)  # the bad one waits for its visibility to end


def test_the_alarms_come_with_it(deployed: Deployment) -> None:
    alarms = deployed.emulator.client("cloudwatch").describe_alarms()["MetricAlarms"]
    wanted = resources(read_template(OBSERVABILITY), "AWS::CloudWatch::Alarm").values()
    assert {one["AlarmName"].removeprefix("tensafe-") for one in alarms} == {
        one["AlarmName"]["Fn::Sub"].removeprefix("${ServiceName}-") for one in wanted if "MetricName" in one
    }


@gap("an alarm of metric math")
def test_an_alarm_may_be_worked_out_of_several_metrics(deployed: Deployment) -> None:
    """Once it comes up, `without_metric_math` has nothing to leave out any more."""
    client = deployed.emulator.client("cloudformation")
    metric = {"Namespace": "AWS/SQS", "MetricName": "ApproximateNumberOfMessagesVisible"}
    properties = {
        "Metrics": [
            {
                "Id": "a",
                "ReturnData": False,
                "MetricStat": {"Stat": "Maximum", "Period": 60, "Metric": metric},
            },
            {"Id": "b", "ReturnData": True, "Expression": "a + a"},
        ],
        "EvaluationPeriods": 1,
        "Threshold": 1,
        "ComparisonOperator": "GreaterThanThreshold",
    }
    alarm = {"Type": "AWS::CloudWatch::Alarm", "Properties": properties}
    client.create_stack(StackName="math", TemplateBody=json.dumps({"Resources": {"Alarm": alarm}}))
    deadline = time.monotonic() + 30
    while (state := client.describe_stacks(StackName="math")["Stacks"][0]["StackStatus"]).endswith(
        "_IN_PROGRESS"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert state == "CREATE_COMPLETE"
