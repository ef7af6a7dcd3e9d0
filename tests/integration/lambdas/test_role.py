"""The API's role lets it make every call that its routes make, and has no right that none of them takes.

The function's own handler, over its own composition, is asked for each route that the application has: one
that is added and not asked for fails here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tensafe.lambdas.api import serving
from tensafe_gpu.trainer.__main__ import build_worker
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.worker import TrainerWorker
from tests.integration.lambdas.every_route import (
    REFUSED,
    TENANT,
    URL,
    Client,
    ThroughHandler,
    ask_for_all,
)
from tests.support import training_log
from tests.support.as_caller import services_as
from tests.support.aws_stack import Stack, make_stack
from tests.support.role_rights import held, of_a_function
from tests.support.sampler_stand_in import answering
from tests.support.wire_calls import WireCalls, recording_moto
from tools.api_routes import application_routes

pytestmark = pytest.mark.slow

BASE = "acme/tiny"


@pytest.fixture
def wire() -> Iterator[WireCalls]:
    with recording_moto(receive_s=0.01) as wire:
        yield wire


def a_stack(wire: WireCalls, folder: Path) -> Stack:
    path = training_log.smallest_model(folder / "model")
    model = {
        "name": BASE,
        "path": path,
        "arch": "LlamaForCausalLM",
        "vocab_size": training_log.VOCAB,
        "max_context_tokens": 64,
    }
    return make_stack(wire.endpoint, model)


def all_done(worker: TrainerWorker) -> None:
    for _ in range(1000):
        if not worker.step():
            return
    raise AssertionError("the worker never rests")


def no_accountant(*_: object) -> None:
    raise ModuleNotFoundError(name="scipy")


def test_every_route_of_the_api_takes_what_its_role_has_and_all_of_it(
    wire: WireCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensafe.api.native.privacy.plan", no_accountant)  # it is not in the package
    stack = a_stack(wire, tmp_path)
    api, trainer, sampler, other = (
        services_as(name, stack) for name in ("api", "trainer", "sampler", "other")
    )
    info = trainer.model(BASE)
    worker = build_worker(trainer, BASE, BaseModel.load(info.path, name=BASE), "trainer-1")
    key, _ = other.api_keys.create(TENANT, ["train", "sample"])
    for role in ("trainer", "sampler"):
        other.workers.announce(role, BASE, role, 0)
    routes = application_routes()
    through = ThroughHandler(serving(api, URL), routes)
    with (
        answering(sampler, BASE),
        httpx.Client(base_url=URL, headers={"X-API-Key": key}, transport=through) as http,
    ):
        ask_for_all(Client(http, lambda: all_done(worker), BASE, other))
    answered = {route for route, found in through.statuses.items() if min(found) < 400}
    assert set(routes) - answered == set(REFUSED)
    assert set(REFUSED) <= set(through.statuses)

    keys = {
        stack.environment["TENSAFE_KMS_KEY_ID"]: "DataKey",
        stack.environment["TENSAFE_SIGNING_KEY_ID"]: "SigningKey",
    }
    found = held(wire.of("api"), "Api", keys)
    assert found.refused == set()
    assert found.untaken == set(of_a_function("Api"))
