"""Operations of streams whose base model this deployment no longer serves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tests.unit.operations.world import TENANT, World
from tests.unit.wire.messages import request

RUN, SAMPLER = "s-1:train:0", "s-1:sample:0"
NATIVE = f"/v1/training_clients/{RUN}"
DATUM = {"tokens": [1, 2], "loss_fn_inputs": {"target_tokens": [2, 3]}}
SUBMISSIONS: dict[str, Any] = {
    "/api/v1/optim_step": {"model_id": RUN, "seq_id": 1, "adam_params": {}},
    "/api/v1/save_weights": {"model_id": RUN, "seq_id": 1, "path": "saved"},
    "/api/v1/save_weights_for_sampler": {"model_id": RUN, "seq_id": 1, "path": "saved"},
    "/api/v1/asample": {
        "sampling_session_id": SAMPLER,
        "seq_id": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1]}]},
        "sampling_params": {},
    },
    f"{NATIVE}/forward_backward": {"data": [DATUM], "loss_fn": "cross_entropy"},
    f"{NATIVE}/optim_step": {},
    f"{NATIVE}/save_state": {"name": "saved"},
    f"{NATIVE}/sample": {"prompt": [1]},
    "a bad optim_step": {"model_id": RUN, "seq_id": 1, "adam_params": {"beta1": 2}},
}


@pytest.fixture
def unserved(world: World) -> TestClient:
    """The same stores after a restart without the model."""
    world.run(RUN)
    world.sampler(SAMPLER)
    key, _ = world.services.api_keys.create(TENANT, ["train", "sample"])
    app = create_app(replace(world.services, models={}))
    return TestClient(app, headers={"X-API-Key": key}, raise_server_exceptions=False)


@pytest.mark.parametrize("what", [*SUBMISSIONS, "data", "bad data"])
def test_nothing_is_submitted(world: World, unserved: TestClient, what: str) -> None:
    if what in ("data", "bad data"):
        message = request(3)
        message.model_id, message.seq_id = RUN, 1
        raw = message.SerializeToString()
        headers = {"Content-Type": "application/x-protobuf"}
        content = raw if what == "data" else raw[:-1]
        answer = unserved.post("/api/v1/forward_backward", content=content, headers=headers)
    else:
        path = what if what.startswith("/") else "/api/v1/optim_step"
        answer = unserved.post(path, json=SUBMISSIONS[what])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (503, "unavailable", "base_model")
    assert answer.headers["retry-after"] == "1"
    assert [operation.seq for operation in world.log(world.stream(RUN))] == [0]
    assert world.log(world.stream(SAMPLER)) == []
    assert world.markers() == []
