"""What `make aws-local` reads from the templates: each task's command and variables, worked out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tensafe.cloud.settings import read_cloud_settings
from tests.support.templates import OBSERVABILITY, read_template
from tools.aws_local.deployment import DeploymentFailed, deploy, without_metric_math
from tools.aws_local.emulator import Emulator
from tools.aws_local.tasks import TaskSpec, on_this_machine, read_tasks
from tools.aws_local.template import Scope
from tools.stack_parameters import stack_parameters

PARAMETERS = {**stack_parameters("acme/tiny", "[]"), "BaseUrl": "http://127.0.0.1:80"}
RESOURCES = {
    "ItemsTable": "tensafe-items",
    "AnchorTable": "tensafe-anchors",
    "BlobBucket": "blobs",
    "DataKey": "1234",
    "SigningKey": "5678",
    "AdapterTable": "tensafe-adapters",
    "AdapterBucket": "adapters",
    "AdapterKey": "9012",
    "HttpApi": "abc",
}


@pytest.fixture
def tasks() -> Mapping[str, TaskSpec]:
    return {one.role: one for one in read_tasks(PARAMETERS, RESOURCES)}


def test_commands_and_variables_are_the_template_s(tasks: Mapping[str, TaskSpec]) -> None:
    for role in ("trainer", "sampler"):
        assert tasks[role].command == ("python", "-m", f"tensafe_gpu.{role}", "--model", "acme/tiny")
        variables = tasks[role].environment
        assert variables["TENSAFE_TABLE"] == "tensafe-items"
        assert variables["TENSAFE_KMS_KEY_ID"] == "arn:aws:kms:eu-central-1:000000000000:key/1234"
        assert variables["TENSAFE_BASE_URL"] == "http://127.0.0.1:80"
        assert variables["TENSAFE_QUEUE_PREFIX"] == "tensafe-"
        assert variables["TENSAFE_DEVICE"] == "cuda"


def test_spans_go_nowhere_unless_the_parameter_names_a_collector(tasks: Mapping[str, TaskSpec]) -> None:
    collector = "https://otel.example/v1/traces"
    told = {one.role: one for one in read_tasks({**PARAMETERS, "OtlpEndpoint": collector}, RESOURCES)}
    for role in ("trainer", "sampler"):
        for spec, endpoint in ((tasks[role], None), (told[role], collector)):
            given = {
                name.removeprefix("TENSAFE_").lower(): value
                for name, value in spec.environment.items()
                if name.startswith("TENSAFE_")
            }
            assert given["otlp_endpoint"] == (endpoint or "")
            assert read_cloud_settings(**given).otlp_endpoint == endpoint


def test_the_adapter_holder_is_told_its_own_and_samplers_that_there_is_one(
    tasks: Mapping[str, TaskSpec],
) -> None:
    assert tasks["sampler"].environment["TENSAFE_PRIVATE_ADAPTERS"] == "false"
    given = {**PARAMETERS, "AdapterHolderImage": "image"}
    sampler, holder = read_tasks(given, RESOURCES, ("sampler", "adapter-holder"))
    assert sampler.environment["TENSAFE_PRIVATE_ADAPTERS"] == "true"
    assert holder.command[:3] == ("python", "-m", "tensafe_gpu.adapter_holder")
    assert {name: value for name, value in holder.environment.items() if name.startswith("TENSAFE_")} == {
        "TENSAFE_ENVIRONMENT": "production",
        "TENSAFE_TABLE": "tensafe-adapters",
        "TENSAFE_BUCKET": "adapters",
        "TENSAFE_KMS_KEY_ID": "arn:aws:kms:eu-central-1:000000000000:key/9012",
    }


def test_without_a_base_url_it_is_the_api_s_own_address() -> None:
    parameters = {**PARAMETERS, "BaseUrl": ""}
    (trainer, _) = read_tasks(parameters, RESOURCES)
    assert trainer.environment["TENSAFE_BASE_URL"] == "https://abc.execute-api.eu-central-1.amazonaws.com"


def test_on_this_machine_a_task_differs_by_its_device_and_addresses_alone(
    tasks: Mapping[str, TaskSpec], tmp_path: Path
) -> None:
    emulator = Emulator(4566, tmp_path / "log")
    spec = on_this_machine(tasks["trainer"], emulator, tmp_path, TENSAFE_LEASE_S="3")
    assert spec.command[1:] == ("-P", *tasks["trainer"].command[1:])
    changed = {
        name for name, value in tasks["trainer"].environment.items() if spec.environment[name] != value
    }
    assert changed == {"TENSAFE_DEVICE", "HOME"}
    assert spec.environment["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4566"
    assert spec.environment["TENSAFE_LEASE_S"] == "3"


def test_nothing_is_deployed_without_the_functions_package(tmp_path: Path) -> None:
    with pytest.raises(DeploymentFailed, match="make function"):
        deploy(Emulator(9, tmp_path / "log"), tmp_path / "function", {})


def test_only_alarms_of_metric_math_are_left_out(tmp_path: Path) -> None:
    left = tmp_path / "observability.yaml"
    left.write_text(without_metric_math(OBSERVABILITY.read_text()))
    template, core = read_template(OBSERVABILITY), read_template(left)
    out = {name: one for name, one in template["Resources"].items() if name not in core["Resources"]}
    assert set(out) == {"TrainDeadLettersAlarm", "SampleDeadLettersAlarm"}
    assert {**template, "Resources": {**core["Resources"], **out}} == template
    assert core.keys() == template.keys()


def test_what_is_not_known_is_refused() -> None:
    scope = Scope({"Parameters": {}, "Resources": {"One": {"Type": "AWS::S3::Bucket"}}}, {}, {})
    for given in ({"Ref": "Two"}, {"Fn::GetAtt": ["One", "Arn"]}, {"Fn::Select": [0, ["a"]]}):
        with pytest.raises(KeyError):
            scope.value(given)
