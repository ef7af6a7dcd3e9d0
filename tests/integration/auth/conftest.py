"""An issuer on loopback, and the application that accepts its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from fastapi import FastAPI

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tensafe.auth.oidc import token_verifier
from tensafe.contracts.training import ModelInfo
from tensafe.operations.doorbell import queue_specs
from tensafe.services import wire
from tests.support.oidc_issuer import AUDIENCE, Issuer, oidc_issuer
from tests.unit.operations.world import BASE, World

MODEL = ModelInfo(name=BASE, path="model", arch="qwen3", vocab_size=300, max_context_tokens=64)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with oidc_issuer() as running:
        yield running


@pytest.fixture
def world(issuer: Issuer) -> World:
    """The rooms in memory, as a composition root wires them for this issuer."""
    made = World()
    ports = replace(made.services.ports, queue_specs=tuple(queue_specs([BASE])))
    made.services = wire(
        ports, {BASE: MODEL}, tokens=token_verifier(issuer.url, AUDIENCE), clock_ms=made.clock_ms
    )
    return made


@pytest.fixture
def app(world: World) -> FastAPI:
    return create_app(world.services, EdgeLimits(long_poll_s=0.2))
