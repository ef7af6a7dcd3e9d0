"""The template fits the application: routes, variables, queues, tasks. Each rule sees its planted bug."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from pydantic import BaseModel

from tensafe.cloud.settings import ENV_PREFIX, CloudSettings
from tensafe.operations.doorbell import MAX_RECEIVES, queue_specs
from tensafe.storage.dynamodb_items import TTL_ATTRIBUTE
from tensafe_gpu.adapter_holder.composition import CloudHolderSettings
from tests.project_files import ROOT
from tests.support import template_shape as rules
from tests.support.templates import CORE, OBSERVABILITY, TASKS, Template, read_template, resources
from tools.api_routes import TEMPLATE, application_routes, rewritten
from tools.stack_parameters import stack_parameters

RUNBOOKS = {path.stem for path in (ROOT / "infra/runbooks").glob("*.md")}
DEPLOYING = ("infra/README.md", "docs/aws.md")
"""Where whoever deploys reads how many executions an account needs."""
BASE_MODEL = "Qwen/Qwen3-8B-Base"


@cache
def routes() -> dict[str, bool]:
    return application_routes()


def variables(settings: type[BaseModel]) -> dict[str, bool]:
    """Every variable of the settings, and whether it must be there."""
    return {
        f"{ENV_PREFIX}{name.upper()}": field.is_required() for name, field in settings.model_fields.items()
    }


def _text(path: str) -> str:
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


def _all() -> tuple[Template, Template, Template]:
    return read_template(CORE), read_template(TASKS), read_template(OBSERVABILITY)


CHECKS: dict[str, Callable[[Template, Template, Template], list[str]]] = {
    "queues": lambda core, tasks, seen: rules.queues_without_an_end(core, MAX_RECEIVES),
    "dead queues": lambda core, tasks, seen: rules.unread_dead_queues(core),
    "variables": lambda core, tasks, seen: rules.missing_variables(
        core, tasks, variables(CloudSettings), variables(CloudHolderSettings)
    ),
    "routes": lambda core, tasks, seen: rules.routes_apart(core, routes()),
    "alarms": lambda core, tasks, seen: rules.alarms_apart([core, tasks, seen], RUNBOOKS),
    "watched": lambda core, tasks, seen: rules.unwatched(core, seen),
    "schedules": lambda core, tasks, seen: rules.schedules_unwatched(core, seen),
    "containers": lambda core, tasks, seen: rules.loose_containers(tasks),
    "GPUs": lambda core, tasks, seen: rules.gpus_apart(tasks),
    "parameters of the tasks": lambda core, tasks, seen: rules.parameters_apart(core, "Tasks", tasks),
    "parameters of the alarms": lambda core, tasks, seen: rules.parameters_apart(core, "Observability", seen),
}


def _p(template: Template, name: str) -> Any:
    return template["Resources"][name]["Properties"]


def _without_its_key(container: dict[str, Any]) -> None:
    container["Environment"] = [
        one for one in container["Environment"] if one["Name"] != "TENSAFE_KMS_KEY_ID"
    ]


def _container(tasks: Template, name: str) -> Any:
    return _p(tasks, name)["ContainerDefinitions"][0]


PLANTED: dict[str, tuple[str, Callable[[Template, Template, Template], object]]] = {
    "a queue without a dead queue": (
        "queues",
        lambda core, tasks, seen: _p(core, "SampleQueue").pop("RedrivePolicy"),
    ),
    "a dead queue of the other kind": (
        "queues",
        lambda core, tasks, seen: _p(core, "TrainQueue")["RedrivePolicy"].update(
            deadLetterTargetArn={"Fn::GetAtt": ["SampleDeadQueue", "Arn"]}
        ),
    ),
    "dead letters that vanish first": (
        "queues",
        lambda core, tasks, seen: _p(core, "TrainDeadQueue").update(MessageRetentionPeriod=60),
    ),
    "other tries than the service counts": (
        "queues",
        lambda core, tasks, seen: _p(core, "TrainQueue")["RedrivePolicy"].update(maxReceiveCount=1),
    ),
    "a queue in clear": (
        "queues",
        lambda core, tasks, seen: _p(core, "TrainQueue").pop("SqsManagedSseEnabled"),
    ),
    "dead letters that nobody reads": (
        "dead queues",
        lambda core, tasks, seen: core["Resources"].pop("SampleDeadLetters"),
    ),
    "dead letters that fail together": (
        "dead queues",
        lambda core, tasks, seen: _p(core, "TrainDeadLetters").pop("FunctionResponseTypes"),
    ),
    "a function without its bucket": (
        "variables",
        lambda core, tasks, seen: core["Globals"]["Function"]["Environment"]["Variables"].pop(
            "TENSAFE_BUCKET"
        ),
    ),
    "a task without its key": (
        "variables",
        lambda core, tasks, seen: _without_its_key(_container(tasks, "SamplerTask")),
    ),
    "an adapter holder without its key": (
        "variables",
        lambda core, tasks, seen: _without_its_key(_container(tasks, "AdapterHolderTask")),
    ),
    "an adapter holder with a variable of the service": (
        "variables",
        lambda core, tasks, seen: _container(tasks, "AdapterHolderTask")["Environment"].append(
            {"Name": "TENSAFE_SIGNING_KEY_ID", "Value": "x"}
        ),
    ),
    "a variable that nothing reads": (
        "variables",
        lambda core, tasks, seen: core["Globals"]["Function"]["Environment"]["Variables"].update(
            TENSAFE_TABEL="x"
        ),
    ),
    "a route that is missing": ("routes", lambda core, tasks, seen: core["Resources"].pop("RouteGetHealthz")),
    "a route that leads nowhere": (
        "routes",
        lambda core, tasks, seen: _p(core, "RouteGetHealthz").update(RouteKey="GET /health"),
    ),
    "a route that anybody may call": (
        "routes",
        lambda core, tasks, seen: _p(core, "RoutePostApiV1GetInfo").update(AuthorizationType="NONE"),
    ),
    "health behind a credential": (
        "routes",
        lambda core, tasks, seen: _p(core, "RouteGetHealthz").update(AuthorizationType="CUSTOM"),
    ),
    "an alarm without a runbook": (
        "alarms",
        lambda core, tasks, seen: _p(seen, "LeaseChurnAlarm").update(AlarmDescription="leases"),
    ),
    "an alarm with a runbook that is not there": (
        "alarms",
        lambda core, tasks, seen: _p(seen, "LeaseChurnAlarm").update(
            AlarmDescription="infra/runbooks/leases.md"
        ),
    ),
    "a runbook of no alarm": (
        "alarms",
        lambda core, tasks, seen: seen["Resources"].pop("HeUnavailableAlarm"),
    ),
    "dead letters that are seen only while nobody has them": (
        "watched",
        lambda core, tasks, seen: _p(seen, "TrainDeadLettersAlarm")["Metrics"].pop(1),
    ),
    "dead letters of another queue": (
        "watched",
        lambda core, tasks, seen: _p(core, "Observability")["Parameters"].update(
            SampleDeadQueueName={"Fn::GetAtt": ["SampleQueue", "QueueName"]}
        ),
    ),
    "a function whose errors nobody counts": (
        "watched",
        lambda core, tasks, seen: seen["Resources"].pop("SweeperErrorsAlarm"),
    ),
    "a schedule that stops unseen": (
        "schedules",
        lambda core, tasks, seen: _p(seen, "SweeperSilentAlarm").update(TreatMissingData="notBreaching"),
    ),
    "a schedule whose calls are dropped": (
        "schedules",
        lambda core, tasks, seen: _p(core, "SweepEveryMinute")["Targets"][0].pop("DeadLetterConfig"),
    ),
    "a schedule that may not keep its calls": (
        "schedules",
        lambda core, tasks, seen: core["Resources"].pop("SweepFailuresPolicy"),
    ),
    "a schedule whose calls wait for hours": (
        "schedules",
        lambda core, tasks, seen: _p(core, "SweepInvocation").pop("MaximumEventAgeInSeconds"),
    ),
    "a container that is root": (
        "containers",
        lambda core, tasks, seen: _container(tasks, "TrainerTask").pop("User"),
    ),
    "a container that writes its image": (
        "containers",
        lambda core, tasks, seen: _container(tasks, "TrainerTask").update(ReadonlyRootFilesystem=False),
    ),
    "a container that nobody watches": (
        "containers",
        lambda core, tasks, seen: _container(tasks, "SamplerTask").pop("HealthCheck"),
    ),
    "a secret in a variable": (
        "containers",
        lambda core, tasks, seen: _container(tasks, "SamplerTask")["Environment"].append(
            {"Name": "AWS_SECRET_ACCESS_KEY", "Value": "x"}
        ),
    ),
    "a task for CUDA without a GPU": (
        "GPUs",
        lambda core, tasks, seen: _container(tasks, "TrainerTask").pop("ResourceRequirements"),
    ),
    "a GPU for a task that does not use it": (
        "GPUs",
        lambda core, tasks, seen: _container(tasks, "AdapterHolderTask").update(
            ResourceRequirements=[{"Type": "GPU", "Value": "1"}]
        ),
    ),
    "a container that takes every GPU": (
        "GPUs",
        lambda core, tasks, seen: _container(tasks, "SamplerTask")["Environment"].append(
            {"Name": "NVIDIA_VISIBLE_DEVICES", "Value": "all"}
        ),
    ),
    "a sampler with Docker's 64 MB of shared memory": (
        "GPUs",
        lambda core, tasks, seen: _container(tasks, "SamplerTask")["LinuxParameters"].pop("SharedMemorySize"),
    ),
    "a nested stack that lacks a parameter": (
        "parameters of the tasks",
        lambda core, tasks, seen: _p(core, "Tasks")["Parameters"].pop("VpcId"),
    ),
    "a parameter that nobody who deploys can set": (
        "parameters of the tasks",
        lambda core, tasks, seen: _p(core, "Tasks")["Parameters"].pop("OnDemandShare"),
    ),
    "a parameter that is refused halfway": (
        "parameters of the tasks",
        lambda core, tasks, seen: core["Parameters"]["VolumeThroughputMiBs"].update(MaxValue=1000),
    ),
    "a nested stack that is told too much": (
        "parameters of the alarms",
        lambda core, tasks, seen: _p(core, "Observability")["Parameters"].update(Queue="x"),
    ),
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_templates_fit(check: str) -> None:
    assert CHECKS[check](*_all()) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_seen(name: str) -> None:
    check, plant = PLANTED[name]
    templates = _all()
    plant(*templates)
    assert CHECKS[check](*templates) != []


def test_the_routes_are_as_the_tool_writes_them() -> None:
    text = TEMPLATE.read_text()
    assert text == rewritten(text), "run: .venv/bin/python tools/api_routes.py"


def test_the_queues_have_the_names_that_the_service_asks_for() -> None:
    core = read_template(CORE)
    slug = stack_parameters(BASE_MODEL, "[]")["ModelSlug"]
    named = {
        one["QueueName"]["Fn::Sub"].replace("${ServiceName}-", "").replace("${ModelSlug}", slug)
        for one in resources(core, "AWS::SQS::Queue").values()
    }
    wanted = {
        name + (".fifo" if spec.fifo else "")
        for spec in queue_specs([BASE_MODEL])
        for name in (spec.name, spec.dead_queue)
    }
    assert wanted <= named
    assert named - wanted == {"sweep-failures"}
    longest = max(len(one["QueueName"]["Fn::Sub"]) for one in resources(core, "AWS::SQS::Queue").values())
    assert longest < 80


def test_the_tables_let_go_of_what_has_expired() -> None:
    ttl = _p(read_template(CORE), "ItemsTable")["TimeToLiveSpecification"]
    assert ttl == {"AttributeName": TTL_ATTRIBUTE, "Enabled": True}


def test_every_handler_and_task_is_a_module() -> None:
    core, tasks, _ = _all()
    handlers = {one["Handler"] for one in resources(core, "AWS::Serverless::Function").values()}
    assert handlers == {
        f"tensafe.lambdas.{name}.handler" for name in ("api", "authorizer", "dead_letters", "sweeper")
    }
    for task in resources(tasks, "AWS::ECS::TaskDefinition").values():
        command = task["ContainerDefinitions"][0]["Command"]
        assert command[:2] == ["python", "-m"]
        assert importlib.util.find_spec(command[2])


def test_the_adapter_holder_is_told_to_listen_where_samplers_may_reach_it() -> None:
    from tensafe_gpu.adapter_holder.commands import _parser

    tasks = read_template(TASKS)
    container = _container(tasks, "AdapterHolderTask")
    options = _parser().parse_args(["serve", *container["Command"][3:]])
    port = int(options.listen.rpartition(":")[2])
    assert options.listen == f"tcp:0.0.0.0:{port}"
    assert container["PortMappings"] == [{"ContainerPort": port, "Protocol": "tcp"}]
    (inwards,) = _p(tasks, "HolderTraffic")["SecurityGroupIngress"]
    outwards = _p(tasks, "SamplerToHolder")
    assert {one[end] for one in (inwards, outwards) for end in ("FromPort", "ToPort")} == {port}
    assert inwards["SourceSecurityGroupId"] == outwards["GroupId"] == {"Ref": "TaskTraffic"}
    network = _p(tasks, "AdapterHolderService")["NetworkConfiguration"]["AwsvpcConfiguration"]
    assert network["SecurityGroups"] == [{"Ref": "HolderTraffic"}]
    assert container["LogConfiguration"]["Options"]["awslogs-group"] == {"Ref": "AdapterHolderLogs"}
    assert container["HealthCheck"]["Command"][-1] == "tensafe_gpu.healthcheck"


def test_an_api_request_ends_before_api_gateway_gives_up() -> None:
    core = read_template(CORE)
    assert _p(core, "ApiFunction")["Timeout"] * 1000 < _p(core, "ApiIntegration")["TimeoutInMillis"] <= 30_000
    for source in ("TrainDeadQueue", "SampleDeadQueue"):
        assert _p(core, source)["VisibilityTimeout"] >= 6 * _p(core, "DeadLettersFunction")["Timeout"]


def test_an_account_with_a_small_quota_reserves_nothing() -> None:
    core = read_template(CORE)
    assert core["Conditions"]["Reserved"] == {"Fn::Equals": [{"Ref": "ReserveConcurrency"}, "true"]}
    needed = sum(rules.reserved(core).values()) + rules.UNRESERVED
    for text in (core["Parameters"]["ReserveConcurrency"]["Description"], *map(_text, DEPLOYING)):
        assert f"{needed} executions" in text or f"quota of {needed}" in text
    _p(core, "SweeperFunction").update(ReservedConcurrentExecutions={"Ref": "ApiConcurrency"})
    with pytest.raises(ValueError, match="SweeperFunction"):
        rules.reserved(core)


def test_an_instance_joins_the_cluster_once_it_has_the_models() -> None:
    """Without them a task on it would end again and again; and the AMI has no AWS CLI to fetch them with."""
    template = _p(read_template(TASKS), "InstanceTemplate")["LaunchTemplateData"]["UserData"]["Fn::Base64"]
    script, values = template["Fn::Sub"]
    assert script.index("set -euo pipefail") < script.index("${Fetch}") < script.index("ECS_CLUSTER=")
    condition, fetch, nothing = values["Fetch"]["Fn::If"]
    assert (condition, nothing) == ("WithModelsBucket", "true")
    assert fetch["Fn::Sub"].startswith("command -v aws || dnf install -q -y awscli-2; aws s3 sync ")


def test_a_model_has_time_and_a_volume_that_it_loads_from_quickly() -> None:
    core, tasks, _ = _all()
    limit = CloudSettings.model_fields["load_limit_s"].default
    assert core["Parameters"]["LoadLimitS"]["Default"] == limit > 300  # what ECS itself may give
    for name in ("TrainerTask", "SamplerTask"):
        told = {one["Name"]: one["Value"] for one in _container(tasks, name)["Environment"]}
        assert told["TENSAFE_LOAD_LIMIT_S"] == {"Ref": "LoadLimitS"}
    (volume,) = _p(tasks, "InstanceTemplate")["LaunchTemplateData"]["BlockDeviceMappings"]
    assert volume["Ebs"]["Throughput"] == {"Ref": "VolumeThroughputMiBs"}
    speed = core["Parameters"]["VolumeThroughputMiBs"]
    assert 125 < speed["Default"] <= speed["MaxValue"] == 0.25 * 3000  # MiB/s for each of gp3's IOPS
