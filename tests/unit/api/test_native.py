"""The native face: which runs and keys its operations are for."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.unit.operations.world import BASE, TENANT, World

DATA = {"data": [{"tokens": [1, 2], "loss_fn_inputs": {"target_tokens": [2, 3]}}], "loss_fn": "cross_entropy"}
APPENDING: dict[str, dict[str, Any]] = {
    "forward_backward": DATA,
    "optim_step": {},
    "save_state": {"name": "saved"},
    "sample": {"prompt": [1, 2]},
}


def sdk_run(http: TestClient) -> str:
    session = http.post("/api/v1/create_session", json={"tags": [], "sdk_version": "0.38.0"})
    body = {
        "session_id": session.json()["session_id"],
        "model_seq_id": 0,
        "base_model": BASE,
        "lora_config": {"rank": 4},
    }
    return str(http.post("/api/v1/create_model", json=body).json()["model_id"])


def native_run(http: TestClient) -> str:
    return str(http.post("/v1/training_clients", json={"base_model": BASE}).json()["training_client"]["id"])


@pytest.mark.parametrize("operation", APPENDING)
def test_a_run_that_the_sdk_numbers_takes_no_operation_from_here(
    world: World, http: TestClient, operation: str
) -> None:
    """It would take the number of the SDK's next one, which would then be a conflict."""
    theirs, ours = sdk_run(http), native_run(http)
    refused = http.post(f"/v1/training_clients/{theirs}/{operation}", json=APPENDING[operation])
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "sdk_session_run")
    assert [op.seq for op in world.log(world.stream(theirs))] == [0]
    step = {"model_id": theirs, "seq_id": 1, "adam_params": {}}
    assert http.post("/api/v1/optim_step", json=step).status_code == 200
    accepted = http.post(f"/v1/training_clients/{ours}/{operation}", json=APPENDING[operation])
    assert accepted.status_code == 202


def test_a_key_that_may_only_sample_leaves_the_log_of_a_run_alone(world: World, http: TestClient) -> None:
    run = native_run(http)
    key, _ = world.services.api_keys.create(TENANT, ["sample"])
    refused = http.post(
        f"/v1/training_clients/{run}/sample", json=APPENDING["sample"], headers={"X-API-Key": key}
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert "create_sampling_session" in refused.json()["detail"]
    assert [op.seq for op in world.log(world.stream(run))] == [0]


def test_a_samples_future_names_the_run_whose_weights_it_samples_from(world: World, http: TestClient) -> None:
    run = native_run(http)
    future = http.post(f"/v1/training_clients/{run}/sample", json=APPENDING["sample"]).json()
    assert future["training_client_id"] == run
    assert http.get(f"/v1/futures/{future['id']}").json() == future
    assert http.get(f"/v1/futures/{run}:0").json()["training_client_id"] == run
    base = world.sampler()
    world.submit(base, 1)
    assert http.get(f"/v1/futures/{base.stream_id}:1").json()["training_client_id"] is None
