"""The native face end to end over HTTP: create, train, sample, save, load, cancel, erase."""

from __future__ import annotations

import hashlib
import json

import httpx
import numpy as np
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from safetensors.numpy import load as load_safetensors

from tensafe.contracts.errors import Gone
from tensafe.operations.checkpoints import CheckpointKind
from tests.support.in_process import services_of
from tests.support.native import TOKENS, Native, batch, example, make_key, problem
from tests.support.service import MODEL_NAME, Service


@pytest.fixture
def native(service: Service, tenant: str) -> Native:
    return Native(service, make_key(service, tenant))


@pytest.fixture
def run(native: Native) -> str:
    return native.create()


def test_a_run_trains_and_tells_what_it_is(native: Native, run: str) -> None:
    losses = native.train(run, 3)
    assert losses[2] < losses[0]
    told = native.get(f"/v1/training_clients/{run}").json()
    assert (told["state"], told["base_model"]) == ("active", MODEL_NAME)
    assert (told["lora"]["rank"], told["lora"]["seed"], told["optimizer"]) == (4, 1, {"type": "adamw"})
    listed = native.get("/v1/training_clients").json()["training_clients"]
    assert [client["id"] for client in listed] == [run]


def test_forward_only_gives_the_same_numbers_and_changes_nothing(native: Native, run: str) -> None:
    forward = native.do(run, "forward_backward", batch(forward_only=True))
    again = native.do(run, "forward_backward", batch())
    assert again["loss_fn_outputs"] == forward["loss_fn_outputs"]
    assert len(forward["loss_fn_outputs"][0]["logprobs"]) == len(TOKENS) - 1
    total = -sum(forward["loss_fn_outputs"][0]["logprobs"])
    assert forward["metrics"]["loss:sum"] == pytest.approx(total, rel=1e-5)


def test_both_faces_see_one_run(native: Native, run: str) -> None:
    native.train(run)
    info = native.post("/api/v1/get_info", {"model_id": run}).json()
    assert (info["model_name"], info["lora_rank"]) == (MODEL_NAME, 4)
    runs = native.get("/api/v1/training_runs").json()["training_runs"]
    assert [found["training_run_id"] for found in runs] == [run]


def test_sampling_sees_every_operation_before_it(native: Native, run: str) -> None:
    prompt, after = TOKENS[:4], {"sampling_params": {"max_tokens": 8, "temperature": 0, "stop": []}}
    before = native.do(run, "sample", {"prompt": prompt, "prompt_logprobs": True, **after})
    assert len(before["sequences"][0]["tokens"]) == 8
    pending = [native.submit(run, "forward_backward", batch()) for _ in range(2)]
    pending.append(native.submit(run, "optim_step", {"learning_rate": 0.05}))
    answer = native.do(run, "sample", {"prompt": prompt, "prompt_logprobs": True, **after})
    for future in pending:
        native.result(future)
    forward = native.do(run, "forward_backward", batch(example(prompt), forward_only=True))
    ours = np.array(forward["loss_fn_outputs"][0]["logprobs"])
    assert np.abs(ours - np.array(answer["prompt_logprobs"][1:])).max() <= 1e-3
    assert np.abs(ours - np.array(before["prompt_logprobs"][1:])).max() > 1e-2


def test_a_saved_state_is_an_artifact_and_goes_on_where_it_was(native: Native, run: str) -> None:
    native.train(run, 2)
    artifact = native.save(run, "half")
    content = native.content(artifact["id"])
    assert len(content) == artifact["size_bytes"]
    assert any(tensor.dtype == np.float32 and tensor.size for tensor in load_safetensors(content).values())
    straight = native.train(run, 2)
    made = native.post(f"/v1/training_clients/{run}/load_state", {"name": "half"})
    assert made.status_code == 201
    native.result(made.json()["future"]["id"])
    resumed = made.json()["training_client"]
    assert resumed["parent"] == artifact["path"]
    assert native.train(resumed["id"], 2) == straight
    assert native.content(native.save(resumed["id"], "end")["id"]) == native.content(
        native.save(run, "end")["id"]
    )


def test_a_cancelled_operation_never_runs(native: Native, run: str) -> None:
    # The second of two whose first is missing waits, so it can be cancelled for sure.
    body = {"model_id": run, "seq_id": 3, "adam_params": {"learning_rate": 0.5}}
    waiting = native.post("/api/v1/optim_step", body).json()["request_id"]
    cancelled = native.post(f"/v1/futures/{waiting}/cancel").json()
    assert cancelled["state"] == "cancelled"
    assert problem(native.wait(waiting)) == (422, "cancelled", None)
    assert native.post(f"/v1/futures/{waiting}/cancel").json()["state"] == "cancelled"


def test_a_result_can_be_asked_for_without_waiting(native: Native, run: str) -> None:
    body = {"model_id": run, "seq_id": 2, "adam_params": {}}
    waiting = native.post("/api/v1/optim_step", body).json()["request_id"]
    answer = native.get(f"/v1/futures/{waiting}/result?timeout_s=0")
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    assert problem(native.get(f"/v1/futures/{waiting}/result?timeout_s=21"))[2] == "timeout_s"
    native.post(f"/v1/futures/{waiting}/cancel")


def test_a_failed_operation_is_told_with_its_field(native: Native, run: str) -> None:
    native.save(run, "taken")
    failed = native.submit(run, "save_state", {"name": "taken"})
    assert problem(native.wait(failed)) == (422, "conflict", "path")
    assert native.get(f"/v1/futures/{failed}").json()["error"]["code"] == "conflict"
    native.train(run)


def test_the_same_idempotency_key_is_the_same_operation(native: Native, run: str) -> None:
    first = native.submit(run, "optim_step", {"learning_rate": 0.1}, Idempotency_Key="step")
    assert native.submit(run, "optim_step", {"learning_rate": 0.1}, Idempotency_Key="step") == first
    other = native.post(
        f"/v1/training_clients/{run}/optim_step", {"learning_rate": 0.2}, Idempotency_Key="step"
    )
    assert problem(other)[:2] == (409, "conflict")
    assert native.submit(run, "optim_step", {"learning_rate": 0.1}, Idempotency_Key="next") != first
    assert problem(native.post(f"/v1/training_clients/{run}/optim_step", {}, Idempotency_Key=""))[0] == 422


@pytest.mark.parametrize("lora", [{"rank": 4}, {"rank": 4, "seed": 9}])
def test_creating_again_with_the_same_idempotency_key_is_the_same_run(
    native: Native, lora: dict[str, int]
) -> None:
    body = {"base_model": MODEL_NAME, "lora": lora}
    first, again = (
        native.post("/v1/training_clients", body, Idempotency_Key="create").json() for _ in range(2)
    )
    assert again["training_client"] == first["training_client"]
    other = native.post("/v1/training_clients", {**body, "lora": {"rank": 8}}, Idempotency_Key="create")
    assert problem(other)[:2] == (409, "conflict")
    native.result(first["future"]["id"])


def test_sampling_again_with_the_same_idempotency_key_is_the_same_sample(native: Native, run: str) -> None:
    body = {"prompt": TOKENS[:3], "sampling_params": {"max_tokens": 6, "stop": []}}
    first, again = (native.submit(run, "sample", body, Idempotency_Key="sample") for _ in range(2))
    assert first == again
    native.result(first)
    other = native.post(
        f"/v1/training_clients/{run}/sample", {**body, "num_samples": 2}, Idempotency_Key="sample"
    )
    assert problem(other)[:2] == (409, "conflict")
    assert "Idempotency-Key" in other.json()["error"]["message"]


def test_store_01_an_artifact_saved_by_one_process_is_loaded_by_another(
    service: Service, native: Native, run: str
) -> None:
    """The seed wrote keys that its own store refused; here trainer, API and a third process agree."""
    native.train(run)
    artifact = native.save(run, "step-0001.final_A")
    content = native.content(artifact["id"])  # written by the trainer, read by the API
    with services_of(service) as services:
        owner = services.streams.get(run, services.streams.find(run).tenant)  # type: ignore[union-attr]
        found = services.checkpoints.find(run, CheckpointKind.TRAINING, artifact["name"], owner.tenant)
        assert services.checkpoints.read(owner, found) == content
        sealed = services.ports.blobs.get(found.ref.blob_key)
        assert hashlib.sha256(sealed).hexdigest() == artifact["sha256"]
        assert content[:64] not in sealed


def test_deleting_erases(service: Service, native: Native, run: str) -> None:
    native.train(run)
    artifact = native.save(run, "kept")
    done = native.submit(run, "forward_backward", batch())
    native.result(done)
    sampled = native.submit(run, "sample", {"prompt": TOKENS[:3], "sampling_params": {"max_tokens": 2}})
    native.result(sampled)
    with services_of(service) as services:
        stream = services.streams.find(run)
        assert stream is not None
        checkpoint = services.checkpoints.find(run, CheckpointKind.TRAINING, "kept", stream.tenant)
        sealed = services.ports.blobs.get(checkpoint.ref.blob_key)
        assert native.http.delete(f"/v1/training_clients/{run}").json() == {"id": run, "state": "erased"}
        # Somebody who copied the ciphertext and its sealed key has the key file as well, and nothing more.
        services.ports.blobs.put(checkpoint.ref.blob_key, sealed)
        services.vault.forget(stream.scope)
        with pytest.raises(Gone):
            services.artifacts.read(stream.scope, checkpoint.part, checkpoint.ref)
        services.ports.blobs.delete(checkpoint.ref.blob_key)
    for answer in (
        native.get(f"/v1/training_clients/{run}"),
        native.post(f"/v1/training_clients/{run}/optim_step"),
        native.get(f"/v1/futures/{done}/result"),
        native.get(f"/v1/futures/{sampled}/result"),
        native.http.delete(f"/v1/training_clients/{run}"),
    ):
        assert problem(answer)[:2] == (410, "gone")
    assert problem(native.get(f"/v1/artifacts/{artifact['id']}/content"))[0] == 404
    assert native.get("/v1/training_clients").json() == {"training_clients": []}
    # On the Tinker face, whose SDK would ask for the future again for ever, what is gone is absent.
    assert problem(native.post("/api/v1/retrieve_future", {"request_id": done}))[0] == 404


def test_the_openapi_document_is_valid(service: Service) -> None:
    document = httpx.get(f"{service.url}/openapi.json").json()
    OpenAPIV31SpecValidator(document).validate()
    assert document["components"]["securitySchemes"].keys() == {"ApiKey", "Bearer"}
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    assert len(json.dumps(document)) < 500_000
