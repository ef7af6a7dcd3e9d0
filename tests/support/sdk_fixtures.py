"""Fixtures of the official SDK against the fixture `service`: one machine's, or AWS's on an emulator.

A conftest imports them by name and supplies `service`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest
import tinker

from tests.support.service import MODEL_NAME
from tests.support.tiny_models import tiny_model


class RunningService(Protocol):
    """What these fixtures need of a service."""

    @property
    def url(self) -> str: ...

    def create_key(self, tenant: str, /) -> str: ...


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 with a tokenizer; head size 32, the smallest that vLLM's CPU attention has."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return Path(tiny_model(folder, "qwen3", hidden=128, heads=4, max_context=2048))


@pytest.fixture
def tenant() -> str:
    """A tenant of this test's own."""
    return f"t-{uuid4().hex[:12]}"


@pytest.fixture
def key(service: RunningService, tenant: str) -> str:
    return service.create_key(tenant)


@pytest.fixture
def client(
    service: RunningService, key: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tinker.ServiceClient]:
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
