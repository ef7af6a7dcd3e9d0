"""The deployment of the folder above, reached through `sam local start-api` instead of the emulator's API.

`make sam-local` sets TENSAFE_SAM_LOCAL=docker. Otherwise processes stand for Docker's containers, and the
rest is SAM CLI as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.project_files import ROOT
from tests.support.aws_service import AwsService
from tools.aws_local.emulator import NotInstalled
from tools.aws_local.sam_api import SAM, sam_api

WITHOUT_DOCKER = (
    *("/usr/bin/env", f"PYTHONPATH={ROOT}"),
    *(SAM.with_name("python"), "-m", "tests.support.sam_without_docker"),
)


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has sam.log."""
    return tmp_path_factory.mktemp("sam")


@pytest.fixture(scope="session")
def service(service: AwsService, built: Path, sam_folder: Path) -> Iterator[AwsService]:
    command = (SAM,) if os.environ.get("TENSAFE_SAM_LOCAL") == "docker" else WITHOUT_DOCKER
    started = sam_api(service.stack.deployment, built / "function", sam_folder, command)
    try:
        url = started.__enter__()
    except NotInstalled as absent:
        pytest.skip(str(absent))
    try:
        yield AwsService(replace(service.stack, url=url))
    finally:
        started.__exit__(None, None, None)
