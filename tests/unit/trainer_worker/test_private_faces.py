"""What both faces tell of a private run, and what they refuse while a step is half accumulated."""

from __future__ import annotations

from typing import Any

import pytest
import tinker
from starlette.testclient import TestClient
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase

from tensafe.operations.records import OpKind, OpState
from tests.support.sdk_data import supervised
from tests.support.training_log import private
from tests.unit.operations.world import BASE
from tests.unit.trainer_worker.rig import Rig

TOKENS = [5, 9, 2, 7, 30]
PRIVATE = OptimizerConfigBase(**private(max_participations=9).model_dump(exclude_none=True))
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
