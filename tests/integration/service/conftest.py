"""One running service for all tests of this folder; each test makes its own tenant or runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import tinker

from tests.support.oidc_issuer import AUDIENCE, Issuer, oidc_issuer
from tests.support.service import MODEL_NAME, Service, free_port
from tests.support.tiny_models import tiny_model


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 with a tokenizer; head size 32, the smallest that vLLM's CPU attention has."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return Path(tiny_model(folder, "qwen3", hidden=128, heads=4, max_context=2048))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[Service]:
    port = free_port()
    running = Service(
        tmp_path_factory.mktemp("service"),
        model_path,
        environment={"TENSAFE_PRIVATE_ADAPTERS": "true"},
        options=("--metrics-port", str(port)),
        metrics_port=port,
    )
    running.init()
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def issuer() -> Iterator[Issuer]:
    """An identity provider whose tokens `own_service` accepts."""
    with oidc_issuer() as running:
        yield running


@pytest.fixture(scope="session")
def own_service(
    tmp_path_factory: pytest.TempPathFactory, model_path: Path, issuer: Issuer
) -> Iterator[Service]:
    """A second one, for tests that kill all of it; each leaves it running."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "tmp").mkdir()
    port = free_port()
    running = Service(
        folder,
        model_path,
        environment={"TMPDIR": str(folder / "tmp"), "TENSAFE_PRIVATE_ADAPTERS": "true"},
        options=(
            *("--metrics-port", str(port)),
            *("--oidc-issuer", issuer.url, "--oidc-audience", AUDIENCE),
        ),
        metrics_port=port,
    )
    running.init()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def tenant() -> str:
    """A tenant of this test's own."""
    return f"t-{uuid4().hex[:12]}"


@pytest.fixture
def key(service: Service, tenant: str) -> str:
    return service.create_key(tenant)


@pytest.fixture
def client(service: Service, key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tinker.ServiceClient]:
    """The official SDK, unmodified, pointed at the service."""
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
