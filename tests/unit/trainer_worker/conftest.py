"""A real trainer over a tiny model and stores in memory or SQLite, one step at a time."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: these tests open no socket

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tinker
import torch
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tensafe.operations.doorbell import queue_specs
from tensafe.services import Services, wire
from tensafe_gpu.trainer import private_steps
from tensafe_gpu.trainer.base_model import BaseModel
from tests.support.sdk_in_memory import Edge, service_client
from tests.support.training_log import smallest_model
from tests.unit.operations.world import BASE, TENANT
from tests.unit.trainer_worker.rig import Rig


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    torch.set_num_threads(1)
    return BaseModel.load(smallest_model(tmp_path_factory.mktemp("model")), name=BASE)


@pytest.fixture(scope="session", autouse=True)
def _same_noise() -> Iterator[None]:
    """Every run draws its noise from one secret, so that two runs of the same log can be compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_steps, "os", SimpleNamespace(urandom=lambda count: b"\x05" * count))
        yield


@pytest.fixture
def rig(base: BaseModel) -> Rig:
    """Over memory."""
    return Rig(base)


@pytest.fixture
def durable_rig(base: BaseModel, tmp_path: Path) -> Rig:
    """Over SQLite."""
    return Rig(base, tmp_path)


@pytest.fixture
def new_rig(base: BaseModel) -> Callable[..., Rig]:
    """Makes rigs over memory, each with stores of its own."""
    return lambda **settings: Rig(base, **settings)


@pytest.fixture
def edge_services(rig: Rig) -> Services:
    """The rig's rooms as the API has them: with the base model."""
    world = rig.world
    specs = tuple(queue_specs([BASE]))
    ports = replace(world.services.ports, queue_specs=specs)
    return wire(ports, {BASE: rig.base.info}, clock_ms=world.clock_ms)


@pytest.fixture
def api_key(edge_services: Services) -> str:
    return edge_services.api_keys.create(TENANT, ["train", "sample"])[0]


@pytest.fixture
def http(edge_services: Services, api_key: str) -> Iterator[TestClient]:
    """Both faces over the rig's stores; the test lets the worker work."""
    app = create_app(edge_services, EdgeLimits(long_poll_s=0.2))
    with TestClient(app, headers={"X-API-Key": api_key}) as client:
        yield client


@pytest.fixture
def service(rig: Rig, edge_services: Services, api_key: str) -> Iterator[tinker.ServiceClient]:
    """The official SDK, with the rig's worker at work behind the API."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.005):
            rig.drain()

    working = threading.Thread(target=work, daemon=True)
    working.start()
    app = create_app(edge_services, EdgeLimits(long_poll_s=0.2))
    with service_client(Edge(app), api_key) as client:
        yield client
    done.set()
    working.join()
