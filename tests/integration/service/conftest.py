"""One running service for all tests of this folder; each test makes its own tenant or runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.oidc_issuer import AUDIENCE, Issuer, oidc_issuer
from tests.support.sdk_fixtures import client, key, model_path, tenant, training_client
from tests.support.service import Service, free_port

__all__ = ["client", "key", "model_path", "tenant", "training_client"]


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
