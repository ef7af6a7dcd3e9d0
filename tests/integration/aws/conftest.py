"""template.yaml on ministack with the real functions and real tasks: one for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import tinker

from tensafe.local.models import ModelSource
from tests.support.aws_operator import AwsOperator
from tests.support.aws_service import AwsService
from tests.support.aws_tasks import EcsServices
from tests.support.ministack import emulator_of_aws
from tests.support.service import MODEL_NAME
from tests.support.tiny_models import tiny_model
from tools.aws_local.local_stack import local_stack

LEASE_S = 3
"""A tenth of a deployment's: what a killed task held is free sooner."""

WITH_HOLDER = {"AdapterHolderImage": "none: test_private.py starts it"}
"""Samplers take private adapters."""


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 with a tokenizer; head size 32, the smallest that vLLM's CPU attention has."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return Path(tiny_model(folder, "qwen3", hidden=128, heads=4, max_context=2048))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, built: Path, model_path: Path) -> Iterator[AwsService]:
    folder = tmp_path_factory.mktemp("aws")
    model = ModelSource(MODEL_NAME, str(model_path))
    with (
        emulator_of_aws(folder) as emulator,
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


@pytest.fixture
def tenant() -> str:
    """A tenant of this test's own."""
    return f"t-{uuid4().hex[:12]}"


@pytest.fixture
def key(service: AwsService, tenant: str) -> str:
    return service.create_key(tenant)


@pytest.fixture
def client(service: AwsService, key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tinker.ServiceClient]:
    """The official SDK, unmodified, pointed at the API."""
    monkeypatch.setenv("TINKER_BASE_URL", service.url)
    monkeypatch.setenv("TINKER_API_KEY", key)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    opened = tinker.ServiceClient()
    yield opened
    opened.close("success").result()


@pytest.fixture
def training_client(client: tinker.ServiceClient) -> tinker.TrainingClient:
    return client.create_lora_training_client(MODEL_NAME, rank=8, seed=1).result()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(600))
