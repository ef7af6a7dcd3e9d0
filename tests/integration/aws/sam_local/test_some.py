"""SAM CLI's reading of the template, and a few of the shared tests through it; test_all.py has the others."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
import pytest

from tests.integration.aws.sam_local.conftest import Containers
from tests.integration.service.test_native import (
    native,
    run,
    test_the_same_idempotency_key_is_the_same_operation,
)
from tests.integration.service.test_sdk import test_logprobs_of_sampled_tokens_are_the_trainers
from tests.support.aws_service import AwsService
from tools.api_routes import application_routes
from tools.docker_engine import docker

__all__ = [
    "native",
    "run",
    "test_logprobs_of_sampled_tokens_are_the_trainers",
    "test_the_same_idempotency_key_is_the_same_operation",
]


@pytest.mark.docker
def test_with_an_engine_the_functions_run_in_its_containers_and_none_is_left(
    service: AwsService, key: str, containers: Containers
) -> None:
    if containers.image is None:
        pytest.skip(containers.why)
    since = str(time.time())
    assert httpx.get(f"{service.url}/v1/models", headers={"X-API-Key": key}, timeout=60).status_code == 200
    label = "sam.cli.function.name"
    options = ("--since", since, "--until", str(time.time()), "--filter", "event=create")
    created = docker("events", *options, "--format", f'{{{{index .Actor.Attributes "{label}"}}}}').split()
    assert {"ApiFunction", "AuthorizerFunction"} <= set(created)
    deadline = time.monotonic() + 30
    while docker("ps", "--all", "--quiet", "--filter", f"label={label}"):
        assert time.monotonic() < deadline, "SAM CLI leaves containers"
        time.sleep(0.2)


@pytest.mark.usefixtures("service")
def test_every_route_of_the_application_is_one_of_sam_s(sam_folder: Path) -> None:
    line = re.compile(r"Mounting (\w+) at http://127\.0\.0\.1:\d+(/\S+) \[(.+)\]$", re.MULTILINE)
    mounted = line.findall((sam_folder / "sam.log").read_text())
    routes = {f"{method} {path}" for _, path, methods in mounted for method in methods.split(", ")}
    assert routes == set(application_routes())
    assert {function for function, _, _ in mounted} == {"ApiFunction"}


def test_a_stranger_is_stopped_by_the_authorizer(service: AwsService, key: str) -> None:
    asked = f"{service.url}/v1/models"
    assert httpx.get(asked, headers={"X-API-Key": "tml-x"}, timeout=60).status_code == 403
    assert httpx.get(asked, headers={"X-API-Key": key}, timeout=60).status_code == 200
