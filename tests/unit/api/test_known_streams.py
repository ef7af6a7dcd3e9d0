"""What the edge remembers of a run: refusals are those of a process that has just begun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.operations.doorbell import queue_specs
from tensafe.operations.records import OpState, StreamKind
from tests.unit.api.conftest import MODEL
from tests.unit.operations.world import BASE, TENANT, World
from tests.unit.wire.messages import request

RUN, SAMPLER, NATIVE = "s-1:train:0", "s-1:sample:0", "n-1:train:0"
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def optim_step(http: TestClient, seq: int) -> tuple[int, str]:
    return told(http.post("/api/v1/optim_step", json={"model_id": RUN, "seq_id": seq, "adam_params": {}}))


def forward_backward(http: TestClient, seq: int) -> tuple[int, str]:
    message = request(3)
    message.model_id, message.seq_id = RUN, seq
    return told(http.post("/api/v1/forward_backward", content=message.SerializeToString(), headers=PROTOBUF))


def sample(http: TestClient, seq: int) -> tuple[int, str]:
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1]}]}
    body = {"sampling_session_id": SAMPLER, "seq_id": seq, "prompt": prompt, "sampling_params": {}}
    return told(http.post("/api/v1/asample", json=body))


def native_step(http: TestClient, _: int) -> tuple[int, str]:
    return told(http.post(f"/v1/training_clients/{NATIVE}/optim_step", json={}))


def told(answer: httpx.Response) -> tuple[int, str]:
    """Status and code."""
    return answer.status_code, (answer.json().get("error") or {}).get("code", "")


Ask = Callable[[TestClient, int], tuple[int, str]]
EACH: dict[Ask, str] = {optim_step: RUN, forward_backward: RUN, sample: SAMPLER, native_step: NATIVE}


Begin = Callable[[str], TestClient]


@pytest.fixture
def begin(world: World) -> Begin:
    """Begins processes of the API over the same stores: each serves one key and has a memory of its own."""
    spec = {"optimizer": {"type": "adam"}}
    for run in (RUN, NATIVE):
        _, creation = world.services.streams.creation(run, TENANT, StreamKind.RUN, BASE, spec=spec)
        world.items.write(creation)
    world.sampler(SAMPLER)

    def begin(key: str) -> TestClient:
        services = world.open(queue_specs=tuple(queue_specs([BASE])))
        app = create_app(replace(services, models={BASE: MODEL}))
        return TestClient(app, headers={"X-API-Key": key}, raise_server_exceptions=False)

    return begin


@pytest.fixture
def key(world: World) -> str:
    return world.services.api_keys.create(TENANT, ["train", "sample"])[0]


@pytest.mark.parametrize("ask", EACH)
def test_an_erased_stream_is_refused_as_by_a_process_that_never_knew_it(
    ask: Ask, begin: Begin, key: str, world: World
) -> None:
    here = begin(key)
    assert ask(here, 1)[0] in (200, 202)
    world.open().streams.erase(EACH[ask], TENANT)
    stored = world.stored(world.stream(EACH[ask])), world.markers()
    refused = ask(here, 2)
    assert refused == ask(begin(key), 3) == ask(here, 4)
    assert refused in ((404, "gone"), (410, "gone"))
    assert (world.stored(world.stream(EACH[ask])), world.markers()) == stored


@pytest.mark.parametrize("ask", EACH)
def test_another_tenant_learns_nothing_by_guessing(ask: Ask, begin: Begin, key: str, world: World) -> None:
    here = begin(key)
    assert ask(here, 1)[0] in (200, 202)
    before = world.log(world.stream(EACH[ask])), world.markers()
    rival, _ = world.services.api_keys.create("rival", ["train", "sample"])
    here.headers["X-API-Key"] = rival
    assert ask(here, 2) == ask(begin(rival), 2) == (404, "not_found")
    assert (world.log(world.stream(EACH[ask])), world.markers()) == before


@pytest.mark.parametrize("ask", EACH)
def test_a_tenant_that_is_gone_is_refused_within_a_second(
    ask: Ask, begin: Begin, key: str, world: World
) -> None:
    """Its keys are revoked by another process, and its runs may still be there."""
    here = begin(key)
    assert ask(here, 1)[0] in (200, 202)
    other = world.open()
    for one in other.api_keys.list(TENANT):
        other.api_keys.revoke(one.key_id)
    world.later(1)
    before = world.log(world.stream(EACH[ask])), world.markers()
    assert ask(here, 2) == (401, "unauthenticated")
    assert (world.log(world.stream(EACH[ask])), world.markers()) == before


def test_a_blocked_run_is_refused_and_leaves_a_tombstone(begin: Begin, key: str, world: World) -> None:
    here = begin(key)
    assert optim_step(here, 1)[0] == 200
    other = world.open()
    other.dead_letters.bury(world.stream(RUN), other.outcomes.get(world.stream(RUN), 1), "poison")
    assert optim_step(here, 2) == (422, "run_blocked")
    assert not any(operation.state is OpState.PENDING for operation in world.log(world.stream(RUN)))
