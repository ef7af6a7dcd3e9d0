"""The deployment of the folder above, reached through `sam local start-api` instead of the emulator's API.

The functions run in containers where a Docker engine answers and an image for them can be had
(tools/lambda_stand_in.py). Elsewhere processes stand for containers, and the rest is SAM CLI as it is; the
summary says which it was.
`make sam-local` sets TENSAFE_SAM_LOCAL=docker, under which there is no other way than Docker.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.project_files import ROOT
from tests.support.aws_service import AwsService
from tools import docker_engine
from tools.aws_local.emulator import NotInstalled
from tools.aws_local.sam_api import SAM, sam_api
from tools.lambda_stand_in import NoImage, lambda_image

WITHOUT_DOCKER = (
    *("/usr/bin/env", f"PYTHONPATH={ROOT}"),
    *(SAM.with_name("python"), "-m", "tests.support.sam_without_docker"),
)
_told: list[str] = []


@dataclass(frozen=True, slots=True)
class Containers:
    """In what the functions run: an image of Docker's, or processes, and why."""

    image: str | None
    why: str = ""


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has sam.log."""
    return tmp_path_factory.mktemp("sam")


@pytest.fixture(scope="session")
def containers(built: Path) -> Containers:
    reason = docker_engine.why_not()
    if reason is None and docker_engine.gateway() is None:
        reason = "Docker's containers reach this machine at no address of its own"
    if reason is None:
        try:
            found = Containers(lambda_image(built / "runtime"))
        except NoImage as error:
            reason = str(error)
        else:
            _told.append(f"in Docker's containers of {found.image}")
            return found
    if os.environ.get("TENSAFE_SAM_LOCAL") == "docker":
        pytest.fail(f"make sam-local is for Docker: {reason}", pytrace=False)
    _told.append(f"with processes in the place of containers: {reason}")
    return Containers(None, reason)


@pytest.fixture(scope="session")
def service(
    service: AwsService, built: Path, sam_folder: Path, containers: Containers
) -> Iterator[AwsService]:
    command = WITHOUT_DOCKER if containers.image is None else (SAM,)
    started = sam_api(service.stack.deployment, built / "function", sam_folder, command, containers.image)
    try:
        url = started.__enter__()
    except NotInstalled as absent:
        pytest.skip(str(absent))
    try:
        yield AwsService(replace(service.stack, url=url))
    finally:
        started.__exit__(None, None, None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for one in _told:
        terminalreporter.write_line(f"sam local ran the functions {one}")
