"""template.yaml on ministack with the real functions and real tasks: one for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.local.models import ModelSource
from tests.support.aws_operator import AwsOperator
from tests.support.aws_service import AwsService
from tests.support.aws_tasks import EcsServices
from tests.support.ministack import emulator_of_aws
from tests.support.sdk_fixtures import client, key, model_path, tenant, training_client
from tests.support.service import MODEL_NAME
from tools import docker_engine
from tools.aws_local.emulator import LOOPBACK
from tools.aws_local.local_stack import local_stack

__all__ = ["client", "key", "model_path", "tenant", "training_client"]

LEASE_S = 3
"""A tenth of a deployment's: what a killed task held is free sooner."""

WITH_HOLDER = {"AdapterHolderImage": "none: test_private.py starts it"}
"""Samplers take private adapters."""


def reached_by_containers() -> str:
    """Where containers of `sam local` reach the emulator too, if there is an engine to run them."""
    return (docker_engine.gateway() if docker_engine.why_not() is None else None) or LOOPBACK


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, built: Path, model_path: Path) -> Iterator[AwsService]:
    folder = tmp_path_factory.mktemp("aws")
    model = ModelSource(MODEL_NAME, str(model_path))
    with (
        emulator_of_aws(folder, reached_by_containers()) as emulator,
        local_stack(
            emulator, built / "function", model, folder, WITH_HOLDER, TENSAFE_LEASE_S=str(LEASE_S)
        ) as stack,
    ):
        stack.wait_ready()
        yield AwsService(stack)


@pytest.fixture(scope="session")
def ecs(service: AwsService) -> EcsServices:
    return EcsServices(service)


@pytest.fixture(scope="session")
def operator(service: AwsService) -> AwsOperator:
    """Who follows the runbooks."""
    return AwsOperator(service)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is of one machine alone stays out; its mark says why. Drills are first: they read whole queues."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    of_one_machine = {item for item in here if item.get_closest_marker("one_machine")}
    for item in here:
        item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.emulator)
        item.add_marker(pytest.mark.timeout(600))
    items.sort(key=lambda item: item in here and "drill" not in item.path.name)
    if of_one_machine:
        items[:] = [item for item in items if item not in of_one_machine]
        config.hook.pytest_deselected(items=list(of_one_machine))
