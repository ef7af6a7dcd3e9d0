"""The application over stores in memory, called without a socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tensafe.contracts.training import ModelInfo
from tensafe.operations.doorbell import queue_specs
from tensafe.services import Services, wire
from tests.unit.operations.world import BASE, TENANT, World

MODEL = ModelInfo(name=BASE, path="model", arch="qwen3", vocab_size=300, max_context_tokens=64)


@pytest.fixture
def world() -> World:
    made = World()
    ports = replace(made.services.ports, queue_specs=tuple(queue_specs([BASE])))
    made.services = wire(ports, {BASE: MODEL}, clock_ms=made.clock_ms)
    return made


@pytest.fixture
def services(world: World) -> Services:
    return world.services


@pytest.fixture
def http(services: Services) -> Iterator[TestClient]:
    """A client with a key of TENANT; long polls last a fifth of a second."""
    key, _ = services.api_keys.create(TENANT, ["train", "sample"])
    app = create_app(services, EdgeLimits(long_poll_s=0.2))
    with TestClient(app, headers={"X-API-Key": key}, raise_server_exceptions=False) as client:
        yield client
