"""ministack, the emulator that deploys template.yaml, as a process on loopback in its own environment.

It expands the SAM template, makes the resources, runs the functions' handlers as processes, routes HTTP
requests through the API's routes and authorizer, and feeds queues to functions. It keeps everything in
memory, checks no policies, and its KMS is no cryptography: nothing here says anything about those.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
import psutil
import pytest

from tests.project_files import ROOT

PYTHON: Final = ROOT / ".cache/ministack/bin/python"
"""Made by `make ministack`."""
REGION: Final = "eu-central-1"
ACCOUNT: Final = "000000000000"
PACKAGE: Final = "build/lambda/function"
"""Where template.yaml expects the functions' package."""
NESTED: Final = ("infra/tasks.yaml", "infra/observability.yaml")
_ARTIFACTS: Final = "deployment-artifacts"
_START_S: Final = 30.0
_DEPLOY_S: Final = 120.0


class DeploymentFailed(AssertionError):
    """The stack did not come up; the message has its failed events."""


@dataclass(frozen=True, slots=True)
class Emulator:
    """A running ministack."""

    port: int
    log: Path
    domain: str = "localhost"
    """What names of APIs end with."""

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What makes boto3 talk to it, here or in another process."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.endpoint_url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )


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


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def emulator_of_aws(folder: Path) -> Iterator[Emulator]:
    """LocalStack at TENSAFE_EMULATOR_URL if that is set, else a ministack of the test's own."""
    url = os.environ.get("TENSAFE_EMULATOR_URL")
    if url is None:
        with running_ministack(folder) as emulator:
            yield emulator
        return
    yield Emulator(int(url.rpartition(":")[2]), folder / "none.log", "localhost.localstack.cloud")


@contextmanager
def running_ministack(folder: Path) -> Iterator[Emulator]:
    """Start it; skip the test, with the reason, where its environment was not made."""
    if not PYTHON.exists():
        pytest.skip("ministack is not installed: make ministack")
    emulator = Emulator(free_port(), folder / "ministack.log")
    environment = os.environ | {
        "BIND_HOST": "127.0.0.1",  # its default is every address
        "GATEWAY_PORT": str(emulator.port),
        "STATE_DIR": str(folder / "state"),
        "TMPDIR": str(folder),
        "MINISTACK_REGION": REGION,
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "DOCKER_HOST": "unix:///nonexistent",
    }
    for name in ("PYTHONPATH", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        environment.pop(name, None)
    with emulator.log.open("wb") as log:
        process = subprocess.Popen([PYTHON, "-m", "ministack"], env=environment, stdout=log, stderr=log)
    try:
        _wait_until_it_answers(emulator, process)
        yield emulator
    finally:
        _end(process)


def _wait_until_it_answers(emulator: Emulator, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", emulator.port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise DeploymentFailed(f"ministack did not start:\n{emulator.log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its functions' processes too, which would outlive it."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def deploy(
    emulator: Emulator, package: Path, parameters: Mapping[str, str], *, name: str = "tensafe"
) -> Deployment:
    """Deploy template.yaml as it stands, with the function package in the folder `package`.

    As `sam package` does, only the places of the package and of the nested templates are replaced by
    where they were uploaded. Raises DeploymentFailed.
    """
    s3, client = emulator.client("s3"), emulator.client("cloudformation")
    if _ARTIFACTS not in {one["Name"] for one in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=_ARTIFACTS, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket=_ARTIFACTS, Key="function.zip", Body=_zipped(package))
    text = (ROOT / "template.yaml").read_text(encoding="utf-8")
    text = _replaced(text, f"CodeUri: {PACKAGE}", f"CodeUri: s3://{_ARTIFACTS}/function.zip", times=4)
    for path in NESTED:
        s3.put_object(Bucket=_ARTIFACTS, Key=path, Body=(ROOT / path).read_bytes())
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


def _wait_until_it_stands(client: Any, name: str) -> dict[str, Any]:
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


def _zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(folder))
    return buffer.getvalue()
