"""template.yaml deployed to an emulator, and what came of it."""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.aws_local.emulator import REGION, ROOT, AwsClient, Emulator

PACKAGE: Final = "build/lambda/function"
"""Where template.yaml expects the functions' package."""
NESTED: Final = ("infra/tasks.yaml", "infra/observability.yaml")
_ARTIFACTS: Final = "deployment-artifacts"
_DEPLOY_S: Final = 120.0
_ALARM: Final = re.compile(r"^  \w+:\n    Type: AWS::CloudWatch::Alarm\n(?:    .*\n)+", re.MULTILINE)


class DeploymentFailed(AssertionError):
    """The stack did not come up; the message has its failed events."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A stack that came up."""

    emulator: Emulator
    name: str
    outputs: Mapping[str, str]

    @property
    def api_host(self) -> str:
        """The Host header by which a request to the emulator's port reaches the API."""
        return f"{self.outputs['ApiId']}.execute-api.{self.emulator.domain}:{self.emulator.port}"

    def resources(self) -> dict[str, str]:
        """Physical ids by logical id."""
        client = self.emulator.client("cloudformation")
        pages = client.get_paginator("list_stack_resources").paginate(StackName=self.name)
        return {
            one["LogicalResourceId"]: one["PhysicalResourceId"]
            for page in pages
            for one in page["StackResourceSummaries"]
        }

    def function_environment(self, logical_id: str) -> dict[str, str]:
        """The variables that the template gives a function."""
        configuration = self.emulator.client("lambda").get_function_configuration(
            FunctionName=self.resources()[logical_id]
        )
        variables: dict[str, str] = configuration["Environment"]["Variables"]
        return variables


def deploy(
    emulator: Emulator, package: Path, parameters: Mapping[str, str], *, name: str = "tensafe"
) -> Deployment:
    """Deploy template.yaml as it stands, with the functions of the folder `package` or of `package`.zip.

    As `sam package` does, only the places of the package and of the nested templates are replaced by
    where they were uploaded; alarms of metric math are left out. Raises DeploymentFailed.
    """
    if not package.is_dir():
        raise DeploymentFailed(f"there is no functions' package at {package}: make function")
    s3, client = emulator.client("s3"), emulator.client("cloudformation")
    if _ARTIFACTS not in {one["Name"] for one in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=_ARTIFACTS, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket=_ARTIFACTS, Key="function.zip", Body=_archive(package))
    text = (ROOT / "template.yaml").read_text(encoding="utf-8")
    text = _replaced(text, f"CodeUri: {PACKAGE}", f"CodeUri: s3://{_ARTIFACTS}/function.zip", times=4)
    for path in NESTED:
        nested = without_metric_math((ROOT / path).read_text(encoding="utf-8"))
        s3.put_object(Bucket=_ARTIFACTS, Key=path, Body=nested.encode())
        uploaded = f"{emulator.endpoint_url}/{_ARTIFACTS}/{path}"
        text = _replaced(text, f"TemplateURL: {path}", f"TemplateURL: {uploaded}")
    s3.put_object(Bucket=_ARTIFACTS, Key="template.yaml", Body=text.encode())
    client.create_stack(
        StackName=name,
        TemplateURL=f"{emulator.endpoint_url}/{_ARTIFACTS}/template.yaml",
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
    )
    stack = _wait_until_it_stands(client, name)
    outputs = {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}
    return Deployment(emulator, name, outputs)


def without_metric_math(template: str) -> str:
    """The text of a template without alarms that have an expression: ministack makes no stack with one."""
    return _ALARM.sub(lambda found: "" if "\n      Metrics:\n" in found[0] else found[0], template)


def _wait_until_it_stands(client: AwsClient, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + _DEPLOY_S
    while time.monotonic() < deadline:
        stack: dict[str, Any] = client.describe_stacks(StackName=name)["Stacks"][0]
        if stack["StackStatus"] == "CREATE_COMPLETE":
            return stack
        if not stack["StackStatus"].endswith("_IN_PROGRESS") or "ROLLBACK" in stack["StackStatus"]:
            break
        time.sleep(0.2)
    events = client.describe_stack_events(StackName=name)["StackEvents"]
    failed = [
        f"{one['LogicalResourceId']}: {one.get('ResourceStatusReason', '')}"
        for one in events
        if one["ResourceStatus"].endswith("FAILED")
    ]
    raise DeploymentFailed(f"the stack is {stack['StackStatus']}: " + "; ".join(failed))


def _replaced(text: str, old: str, new: str, *, times: int = 1) -> str:
    assert text.count(old) == times, f"template.yaml has {text.count(old)} times {old!r}"
    return text.replace(old, new)


def _archive(folder: Path) -> bytes:
    built = folder.with_suffix(".zip")  # tools/build_function.py makes both
    if built.exists():
        return built.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(folder))
    return buffer.getvalue()
