"""What both faces tell of a private run, and what they refuse while a step is half accumulated."""

from __future__ import annotations

from typing import Any

import pytest
import tinker
from starlette.testclient import TestClient
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from tensafe.operations.records import OpKind, OpState
from tests.support.privacy_audit.watching import watch_releases
from tests.support.sdk_data import supervised
from tests.support.tinker_http import PROTOBUF, training_message
from tests.support.training_log import private
from tests.unit.operations.world import BASE
from tests.unit.trainer_worker.rig import Rig
from tests.unit.wire.messages import dense

TOKENS = [5, 9, 2, 7, 30]
OPTIMIZER = private(max_participations=9).model_dump(exclude_none=True)
PRIVATE = OptimizerConfigBase(**OPTIMIZER)
COUNTS = {"non_dp/units:sum", "non_dp/clipped_units:sum", "non_dp/nonfinite_units:sum"}


def private_training(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client(BASE, rank=2, seed=7, optimizer=PRIVATE).result(timeout=30)


def test_the_sdk_is_told_that_outputs_are_not_private(service: tinker.ServiceClient) -> None:
    training = private_training(service)
    data = [supervised(TOKENS, unit=unit) for unit in range(2)]
    backward = training.forward_backward(data, "cross_entropy").result(timeout=30)
    assert set(backward.metrics) == {
        "loss:sum",
        "tokens:sum",
        "weights:sum",
        "non_dp/outputs:max",
        *COUNTS,
        "dp_epsilon:max",
        "dp_delta:max",
    }
    forward = training.forward(data, "cross_entropy").result(timeout=30)
    assert backward.metrics["non_dp/outputs:max"] == forward.metrics["non_dp/outputs:max"] == 1.0
    plain = service.create_lora_training_client(BASE, rank=2, seed=7).result(timeout=30)
    metrics = plain.forward_backward([supervised(TOKENS)], "cross_entropy").result(timeout=30).metrics
    assert not [name for name in metrics if "dp" in name]


def test_a_batch_of_several_chunks_keeps_its_tags(service: tinker.ServiceClient) -> None:
    """The SDK merges the metrics of its chunks by the reduction in their names."""
    training = private_training(service)
    data = [supervised(TOKENS[:2], unit=unit) for unit in range(1030)]
    metrics = training.forward_backward(data, "cross_entropy").result(timeout=60).metrics
    assert metrics["non_dp/outputs:max"] == 1.0
    assert metrics["non_dp/units:sum"] == 1030.0


def test_the_sdk_saves_no_state_of_a_half_accumulated_step(service: tinker.ServiceClient) -> None:
    training = private_training(service)
    training.forward_backward([supervised(TOKENS, unit=1)], "cross_entropy").result(timeout=30)
    with pytest.raises(tinker.RequestFailedError, match="call optim_step, then save"):
        training.save_state("half").result(timeout=30)
    assert training.save_weights_for_sampler("weights").result(timeout=30).path.endswith("/weights")
    assert training.save_weights_external("files").result(timeout=30).path.endswith("/files")
    training.optim_step(types.AdamParams()).result(timeout=30)
    assert training.save_state("whole").result(timeout=30).path.endswith("/whole")


def result(http: TestClient, rig: Rig, run: str, operation: str, body: dict[str, Any]) -> Any:
    """Submit to the native face, let the trainer work; the answer of /result."""
    answer = http.post(f"/v1/training_clients/{run}/{operation}", json=body)
    assert answer.status_code == 202, answer.text
    rig.drain()
    return http.get(f"/v1/futures/{answer.json()['id']}/result")


def test_the_native_face_lists_what_is_not_private_and_saves_no_half_step(rig: Rig, http: TestClient) -> None:
    optimizer = private(max_participations=9).model_dump(exclude_none=True)
    body = {"base_model": BASE, "lora": {"rank": 2, "seed": 7}, "optimizer": optimizer}
    run = http.post("/v1/training_clients", json=body).json()["training_client"]["id"]
    inputs = {"target_tokens": TOKENS[1:], "weights": [1.0] * 4}
    data = [{"tokens": TOKENS[:-1], "loss_fn_inputs": inputs, "dp_unit_id": 1}]
    batch = {"data": data, "loss_fn": "cross_entropy"}
    done = result(http, rig, run, "forward_backward", batch).json()
    assert {"loss_fn_outputs", "metrics.loss:sum", *(f"metrics.{name}" for name in COUNTS)} <= {
        *done["non_dp"]
    }
    assert not [name for name in done["non_dp"] if "dp_epsilon" in name or "dp_delta" in name]
    assert {*done["metrics"]} - {name.removeprefix("metrics.") for name in done["non_dp"]} == {
        "non_dp/outputs:max",
        "dp_epsilon:max",
        "dp_delta:max",
    }
    half = result(http, rig, run, "save_state", {"name": "half"})
    assert half.status_code == 422, half.text
    assert half.json()["error"]["code"] == "conflict"
    assert "call optim_step, then save" in half.json()["detail"]
    sampled = http.post(f"/v1/training_clients/{run}/sample", json={"prompt": [1, 2]})
    assert sampled.status_code == 202, sampled.text
    rig.drain()
    saves = [op for op in rig.world.log(rig.world.stream(run)) if op.kind is OpKind.SAVE_SAMPLER]
    assert [op.state for op in saves] == [OpState.COMPLETED]
    assert result(http, rig, run, "optim_step", {}).status_code == 200
    assert result(http, rig, run, "save_state", {"name": "whole"}).status_code == 200


class Native:
    """A private run of the native face, whose retries carry an idempotency key."""

    def __init__(self, http: TestClient, rig: Rig) -> None:
        self.http = http
        body = {"base_model": BASE, "lora": {"rank": 2, "seed": 7}, "optimizer": OPTIMIZER}
        self.run = http.post("/v1/training_clients", json=body).json()["training_client"]["id"]
        rig.drain()
        inputs = {"target_tokens": TOKENS[1:], "weights": [1.0] * 4}
        self._data = {"tokens": TOKENS[:-1], "loss_fn_inputs": inputs, "dp_unit_id": 1}

    def data(self) -> str:
        return self._sent("forward_backward", {"data": [self._data], "loss_fn": "cross_entropy"})

    def step(self) -> str:
        return self._sent("optim_step", {"learning_rate": 0.1})

    def _sent(self, operation: str, body: dict[str, Any]) -> str:
        path = f"/v1/training_clients/{self.run}/{operation}"
        answer = self.http.post(path, json=body, headers={"Idempotency-Key": operation})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def result(self, request: str) -> bytes:
        answer = self.http.get(f"/v1/futures/{request}/result")
        assert answer.status_code == 200, answer.text
        return answer.content


class OverTinker:
    """The same of the SDK's face, whose retries carry the same number."""

    def __init__(self, http: TestClient, rig: Rig) -> None:
        self.http = http
        session = http.post("/api/v1/create_session", json={"tags": [], "sdk_version": "0.38.0"}).json()
        body = {
            "session_id": session["session_id"],
            "model_seq_id": 0,
            "base_model": BASE,
            "lora_config": {"rank": 2, "seed": 7},
            "optimizer_config": OPTIMIZER,
        }
        assert http.post("/api/v1/create_model", json=body).status_code == 200
        self.run = f"{session['session_id']}:train:0"
        rig.drain()

    def data(self) -> str:
        message = training_message(self.run, 1, TOKENS)
        message.data[0].loss_fn_inputs["dp_unit_id"].CopyFrom(dense([1], "int64"))
        headers = {"Content-Type": PROTOBUF}
        return self._id(
            self.http.post("/api/v1/forward_backward", content=message.SerializeToString(), headers=headers)
        )

    def step(self) -> str:
        body = {"model_id": self.run, "seq_id": 2, "adam_params": {"learning_rate": 0.1}}
        return self._id(self.http.post("/api/v1/optim_step", json=body))

    def _id(self, answer: Any) -> str:
        assert answer.status_code == 200, answer.text
        return str(answer.json()["request_id"])

    def result(self, request: str) -> bytes:
        answer = self.http.post("/api/v1/retrieve_future", json={"request_id": request})
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.mark.parametrize("face", [Native, OverTinker])
def test_a_step_that_is_sent_again_is_charged_once_and_answered_as_before(
    rig: Rig, http: TestClient, face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it has run, after that, and after another trainer has taken over: one sum, row and noise."""
    released = watch_releases(monkeypatch)
    client = face(http, rig)
    sent = [client.data() for _ in range(2)]
    steps = [client.step() for _ in range(2)]
    rig.drain()
    first = client.result(steps[0])
    rig.restart()
    sent.append(client.data())
    steps.append(client.step())
    rig.drain()
    assert len(set(sent)) == len(set(steps)) == 1
    assert [client.result(one) for one in steps] == [first] * 3
    assert len({one.noisy_sum.tobytes() for one in released}) == 1
    shown = http.get("/v1/privacy/domains/letters").json()
    assert (shown["steps"], shown["runs"][0]["participations"]) == (1, 1)
