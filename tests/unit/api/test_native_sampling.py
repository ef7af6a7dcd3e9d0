"""`/v1/sample`: whatever the caller may name, once for each idempotency key, nothing of another tenant."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tensafe.api.execution_policy import POLICY_HEADER
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.payloads import SamplePayload
from tensafe.operations.checkpoints import CheckpointKind
from tensafe.operations.placements import Placement
from tests.unit.operations.world import BASE, TENANT, World

RUN = "s-1:train:0"
SAVED = f"tinker://{RUN}/sampler_weights/final"
HELD = f"tinker://{RUN}/sampler_weights/mine"


@pytest.fixture
def weights(world: World) -> None:
    """Of the caller: saved here, and held by an adapter holder; and another tenant's."""
    world.checkpoint(world.run(RUN), "final", kind=CheckpointKind.SAMPLER)
    world.checkpoint(world.stream(RUN), "state", kind=CheckpointKind.TRAINING)
    world.checkpoint(world.run("s-2:train:0", tenant="other"), "final", kind=CheckpointKind.SAMPLER)
    required = ExecutionPolicy.HE_REQUIRED
    for run, tenant in ((RUN, TENANT), ("s-2:train:0", "other")):
        placed = Placement(run, "mine", tenant, BASE, required, "unix:/h", f"a-{tenant}", 1, "sampler", 0)
        world.services.placements.add(placed)


def ask(http: TestClient, model: str, key: str | None = None, **more: Any) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return http.post("/v1/sample", json={"model": model, "prompt": [1, 2], **more}, headers=headers)


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(("model", "run"), [(BASE, None), (SAVED, RUN), (HELD, RUN)])
def test_it_samples_from_whatever_can_be_named(
    world: World, http: TestClient, model: str, run: str | None
) -> None:
    asked = ask(http, model, execution_policy="HE_REQUIRED", num_samples=2)
    assert asked.status_code == 202
    future = asked.json()
    assert (future["kind"], future["state"], future["training_client_id"]) == ("sample", "pending", run)
    assert http.get(f"/v1/futures/{future['id']}").json() == future
    session, _, seq = future["id"].rpartition(":")
    stream = world.stream(session)
    assert stream.spec["model_path"] == (None if model == BASE else model)
    written = world.services.outcomes.payload(stream, int(seq), world.op(stream, int(seq)))
    payload = SamplePayload.model_validate_json(written)
    assert (payload.answer, payload.execution_policy) == ("json", "HE_REQUIRED")
    assert (payload.request.prompt, payload.request.num_samples) == ((1, 2), 2)
    again = ask(http, model).json()["id"]
    assert again.rpartition(":")[0] == session  # the process's session for this model
    assert again != future["id"]


def test_he_01_the_policy_header_is_not_passed_over(world: World, http: TestClient) -> None:
    for asked, at in (("HE_REQUIRED", BASE), ("HE_PREFERRED", BASE)):
        body = {"model": at, "prompt": [1, 2], "execution_policy": "HE_PREFERRED"}
        told = http.post("/v1/sample", json=body, headers={POLICY_HEADER: asked})
        session, _, seq = told.json()["id"].rpartition(":")
        stream = world.stream(session)
        written = world.services.outcomes.payload(stream, int(seq), world.op(stream, int(seq)))
        assert SamplePayload.model_validate_json(written).execution_policy == asked
    refused = http.post(
        "/v1/sample", json={"model": BASE, "prompt": [1]}, headers={POLICY_HEADER: "required"}
    )
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, POLICY_HEADER)


@pytest.mark.usefixtures("weights")
def test_the_same_idempotency_key_is_the_same_sample_in_whatever_process(
    world: World, http: TestClient
) -> None:
    first = ask(http, SAVED, "once").json()
    del http.app.state.model_samplers  # type: ignore[attr-defined]
    assert ask(http, SAVED, "once").json() == first
    for body in ({"model": BASE}, {"model": SAVED, "num_samples": 2}):
        other = http.post("/v1/sample", json={"prompt": [1, 2], **body}, headers={"Idempotency-Key": "once"})
        assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
        assert "Idempotency-Key" in other.json()["detail"]
    assert len(world.log(world.stream(first["id"].rpartition(":")[0]))) == 1


@pytest.mark.usefixtures("weights")
def test_what_is_not_the_callers_is_not_there(http: TestClient) -> None:
    foreign = "tinker://s-2:train:0/sampler_weights/"
    for absent in (f"{foreign}mine", f"{foreign}final", HELD.replace("mine", "none"), "nobody/knows"):
        assert (answer := ask(http, absent)).status_code == 404, absent
        assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": [1]}, "model"),
        ({"model": "", "prompt": [1]}, "model"),
        ({"model": BASE}, "prompt"),
        ({"model": BASE, "prompt": [1], "adapter": "x"}, "adapter"),
        ({"model": BASE, "prompt": [1, 300]}, "prompt[1]"),
        ({"model": BASE, "prompt": [1] * 64}, "prompt"),
        ({"model": BASE, "prompt": [1], "execution_policy": "HE"}, "execution_policy"),
        ({"model": "tinker://nowhere", "prompt": [1]}, "model"),
        ({"model": f"tinker://{RUN}/weights/state", "prompt": [1]}, "model"),
    ],
)
def test_bad_requests_name_their_field(http: TestClient, body: Any, field: str) -> None:
    answer = http.post("/v1/sample", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def test_a_key_that_may_only_sample_may(world: World, http: TestClient) -> None:
    for scopes, status in ((["sample"], 202), (["train"], 403)):
        key, _ = world.services.api_keys.create(TENANT, scopes)
        answer = http.post("/v1/sample", json={"model": BASE, "prompt": [1]}, headers={"X-API-Key": key})
        assert answer.status_code == status


@pytest.mark.usefixtures("weights")
def test_models_list_private_adapters_of_the_caller_alone(http: TestClient) -> None:
    listed = {model["id"] for model in http.get("/v1/models").json()["data"]}
    assert listed == {BASE, SAVED, HELD}
    assert http.get(f"/v1/models/{HELD}").json()["owned_by"] == TENANT
    assert http.get("/v1/models/tinker://s-2:train:0/sampler_weights/mine").status_code == 404
