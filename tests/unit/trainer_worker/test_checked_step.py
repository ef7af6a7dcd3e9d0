"""A step of tensafe_dp_sgd, checked from the weights before and after it, over both faces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tinker
from starlette.testclient import TestClient
from tinker import types
from tinker.types.optimizer import OptimizerConfigBase, OptimParamsBase

from tensafe.contracts.training import Datum, LoraSpec
from tensafe.operations.records import OpKind
from tensafe.packages.bundle import unpack_files
from tensafe_gpu.trainer.layout import Layout
from tensafe_gpu.trainer.peft_format import export_peft
from tensafe_gpu.trainer.state import RunState
from tests.support.checked_step import Vector, clipped_sum, is_b, noisy_mean, weights_of
from tests.support.sdk_data import supervised
from tests.unit.operations.world import BASE
from tests.unit.trainer_worker.rig import Rig

SETTINGS: dict[str, Any] = {
    "type": "tensafe_dp_sgd",
    "clip_norm": 0.5,
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "batch_size": 4,
    "max_participations": 9,
    "domain": "letters",
}
LORA = LoraSpec(rank=2, seed=7)
# Three units; the examples of unit 2 are summed before they are clipped.
EXAMPLES = [([5, 9, 2, 7, 30], 1), ([8, 8, 1], 2), ([300, 4, 11, 6], 2), ([40, 41, 42, 43, 44, 45], 3)]
DATA = [
    Datum(
        np.array(tokens[:-1], np.int32),
        {"target_tokens": np.array(tokens[1:], np.int64), "weights": np.ones(len(tokens) - 1, np.float32)},
        unit,
    )
    for tokens, unit in EXAMPLES
]


def layout_of(rig: Rig) -> Layout:
    return rig.base.layout(LORA)


def noise_secret(rig: Rig, run_id: str) -> bytes:
    run = next(run for run in rig.worker._hot.all() if run.stream.stream_id == run_id)
    assert run.private is not None
    return run.private.noise_secret


def exported(http: TestClient, training: tinker.TrainingClient, name: str) -> dict[str, bytes]:
    """The run's weights as PEFT files, decrypted for their owner."""
    training.save_weights_external(name).result(timeout=30)
    listed = http.get(f"/v1/training_clients/{training.model_id}/artifacts").json()["artifacts"]
    (artifact,) = [one["id"] for one in listed if one["name"] == name]
    return unpack_files(http.get(f"/v1/artifacts/{artifact}/content").content)


def step_through_the_sdk(
    rig: Rig, http: TestClient, service: tinker.ServiceClient, step: dict[str, Any], **changes: Any
) -> tuple[dict[str, bytes], dict[str, bytes], int, bytes]:
    """Files before and after the second step, its number in the log, and the noise's secret.

    The first step makes B something else than zero, so that A has a gradient.
    """
    optimizer = OptimizerConfigBase(**{**SETTINGS, **changes})
    training = service.create_lora_training_client(
        BASE, rank=LORA.rank, seed=LORA.seed, optimizer=optimizer
    ).result(timeout=30)
    data = [supervised(tokens, unit=unit) for tokens, unit in EXAMPLES]
    training.forward_backward(data, "cross_entropy").result(timeout=30)
    warm = OptimParamsBase(type="tensafe_dp_sgd", learning_rate=0.4)
    training.optim_step(warm).result(timeout=30)
    before = exported(http, training, "before")
    training.forward_backward(data[3:], "cross_entropy").result(timeout=30)
    training.forward_backward(data[:3], "cross_entropy").result(timeout=30)
    training.optim_step(OptimParamsBase(type="tensafe_dp_sgd", **step)).result(timeout=30)
    after = exported(http, training, "after")
    log = rig.world.log(rig.world.stream(training.model_id))
    seq = [operation.seq for operation in log if operation.kind is OpKind.OPTIM_STEP][-1]
    return before, after, seq, noise_secret(rig, training.model_id)


def test_a_step_is_recomputed_from_exported_weights(
    rig: Rig, http: TestClient, service: tinker.ServiceClient
) -> None:
    """w - lr (clipped sum + noise) / batch_size; gradients from PEFT, one example at a time."""
    step = {"learning_rate": 0.3, "weight_decay": 0.1}
    before, after, seq, secret = step_through_the_sdk(rig, http, service, step)
    layout = layout_of(rig)
    total = clipped_sum(rig.base.info.path, before, layout, DATA, 0.5)
    gradient = noisy_mean(total, secret, seq, 0.5, 4)
    expected = (1 - 0.3 * 0.1) * weights_of(before, layout) - 0.3 * gradient
    moved = weights_of(after, layout)
    assert np.abs(moved - expected).max() <= 1e-6
    assert np.abs(moved - weights_of(before, layout)).max() > 1e-2
    without = (1 - 0.3 * 0.1) * weights_of(before, layout) - 0.3 * total / 4
    assert np.abs(moved - without).max() > 1e-2, "the noise is in it"


def test_a_step_that_trains_b_alone_is_recomputed(
    rig: Rig, http: TestClient, service: tinker.ServiceClient
) -> None:
    """freeze_lora_a: the norm is that of B's gradient, the noise has B's length, A keeps every bit."""
    before, after, seq, secret = step_through_the_sdk(
        rig, http, service, {"learning_rate": 0.3}, freeze_lora_a=True
    )
    layout = layout_of(rig)
    chosen, began = is_b(layout), weights_of(before, layout)
    total = clipped_sum(rig.base.info.path, before, layout, DATA, 0.5, b_alone=True)
    moved = weights_of(after, layout)
    assert np.array_equal(moved[~chosen], began[~chosen])
    expected = began[chosen] - 0.3 * noisy_mean(total, secret, seq, 0.5, 4)
    assert np.abs(moved[chosen] - expected).max() <= 1e-6


def test_freezing_a_is_refused_by_name_where_nothing_is_private(http: TestClient) -> None:
    optimizer = {"type": "adamw", "freeze_lora_a": True}
    answer = http.post("/v1/training_clients", json={"base_model": BASE, "optimizer": optimizer})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "optimizer.freeze_lora_a")
    session = http.post("/api/v1/create_session", json={"tags": [], "sdk_version": "0.38.0"}).json()
    body = {
        "session_id": session["session_id"],
        "model_seq_id": 0,
        "base_model": BASE,
        "lora_config": {"rank": 2},
        "optimizer_config": optimizer,
    }
    answer = http.post("/api/v1/create_model", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "optimizer_config.freeze_lora_a")


def test_with_tiny_noise_the_weights_move_by_the_clipped_sum(
    rig: Rig, http: TestClient, service: tinker.ServiceClient
) -> None:
    """Nobody needs the noise's secret for this check."""
    sigma = 1e-3
    before, after, *_ = step_through_the_sdk(
        rig, http, service, {"learning_rate": 0.3}, noise_multiplier=sigma, allow_weak_privacy=True
    )
    layout = layout_of(rig)
    total: Vector = clipped_sum(rig.base.info.path, before, layout, DATA, 0.5)
    rest = (weights_of(after, layout) - weights_of(before, layout)) + 0.3 * total / 4
    deviation = 0.3 * sigma * 0.5 / 4
    assert np.abs(rest).max() <= 6 * deviation
    assert np.std(rest) == pytest.approx(deviation, rel=0.1)  # what is left is the noise alone
    assert np.linalg.norm(rest) < 0.1 * np.linalg.norm(0.3 * total / 4)


def test_the_native_face_takes_the_same_step(rig: Rig, http: TestClient) -> None:
    run = native_run(http, rig)
    for learning_rate, name in ((0.4, "before"), (0.3, "after")):
        post(http, rig, run, "forward_backward", native_batch())
        post(http, rig, run, "optim_step", {"type": "tensafe_dp_sgd", "learning_rate": learning_rate})
        seq = post(http, rig, run, "save_state", {"name": name})["seq"] - 1
    listed = http.get(f"/v1/training_clients/{run}/artifacts").json()["artifacts"]
    contents = {one["name"]: http.get(f"/v1/artifacts/{one['id']}/content").content for one in listed}
    states = {name: RunState.load(data, rig.base) for name, data in contents.items()}
    before = export_peft(states["before"], BASE)
    total = clipped_sum(rig.base.info.path, before, layout_of(rig), DATA, 0.5)
    expected = states["before"].params.double().numpy() - 0.3 * noisy_mean(
        total, noise_secret(rig, run), seq, 0.5, 4
    )
    assert np.abs(states["after"].params.double().numpy() - expected).max() <= 1e-6


def native_run(http: TestClient, rig: Rig, **changes: Any) -> str:
    body = {"base_model": BASE, "lora": {"rank": 2, "seed": 7}, "optimizer": {**SETTINGS, **changes}}
    answer = http.post("/v1/training_clients", json=body)
    assert answer.status_code == 201, answer.text
    rig.drain()
    return str(answer.json()["training_client"]["id"])


def native_batch() -> dict[str, Any]:
    data = [
        {
            "tokens": tokens[:-1],
            "loss_fn_inputs": {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
            "dp_unit_id": unit,
        }
        for tokens, unit in EXAMPLES
    ]
    return {"data": data, "loss_fn": "cross_entropy"}


def post(http: TestClient, rig: Rig, run: str, operation: str, body: dict[str, Any]) -> dict[str, Any]:
    """Submit, let the trainer work; the operation's future, completed."""
    answer = http.post(f"/v1/training_clients/{run}/{operation}", json=body)
    assert answer.status_code == 202, answer.text
    rig.drain()
    done = http.get(f"/v1/futures/{answer.json()['id']}").json()
    assert done["state"] == "completed", done
    return dict(done)


@pytest.mark.parametrize("name", ["beta1", "beta2", "eps", "grad_clip_norm", "momentum"])
def test_what_plain_sgd_does_not_have_is_refused_by_name(rig: Rig, http: TestClient, name: str) -> None:
    run = native_run(http, rig)
    answer = http.post(f"/v1/training_clients/{run}/optim_step", json={"learning_rate": 0.1, name: 0.5})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, name)
    body = {"model_id": run, "seq_id": 1, "optimizer_params": {"type": "tensafe_dp_sgd", name: 0.5}}
    answer = http.post(
        "/api/v1/optim_step",
        json={**body, "optimizer_params": {**body["optimizer_params"], "learning_rate": 1}},
    )
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, f"optimizer_params.{name}")


@pytest.mark.parametrize("family", ["adamw", "tensafe_dp_adamw", "tensafe_dp_sgd"])
def test_a_step_of_another_optimizer_is_refused_by_name(rig: Rig, http: TestClient, family: str) -> None:
    """On both faces; Adam's parameters are taken without a type, except by a run of SGD."""
    settings = {**SETTINGS, "type": family} if family != "adamw" else {"type": family}
    body = {"base_model": BASE, "lora": {"rank": 2, "seed": 7}, "optimizer": settings}
    run = http.post("/v1/training_clients", json=body).json()["training_client"]["id"]
    rig.drain()
    for other in ("adamw", "tensafe_dp_adamw", "tensafe_dp_sgd"):
        step = {"type": other, "learning_rate": 0.1}
        native = http.post(f"/v1/training_clients/{run}/optim_step", json=step)
        if other == family:
            assert native.status_code == 202, native.text
            continue
        assert (native.status_code, native.json()["error"]["field"]) == (422, "type")
        assert family in native.json()["detail"]
        wire_body = {"model_id": run, "seq_id": 2, "optimizer_params": step}
        tinker_face = http.post("/api/v1/optim_step", json=wire_body)
        assert (tinker_face.status_code, tinker_face.json()["error"]["field"]) == (
            422,
            "optimizer_params.type",
        )
        assert family in tinker_face.json()["detail"]
    untyped = http.post("/api/v1/optim_step", json={"model_id": run, "seq_id": 9, "adam_params": {}})
    if family == "tensafe_dp_sgd":
        assert (untyped.status_code, untyped.json()["error"]["field"]) == (422, "adam_params")
        assert family in untyped.json()["detail"]
    else:
        assert untyped.status_code == 200, untyped.text


def test_the_sdk_is_told_that_adams_parameters_are_not_sgds(service: tinker.ServiceClient) -> None:
    training = service.create_lora_training_client(
        BASE, rank=2, optimizer=OptimizerConfigBase(**SETTINGS)
    ).result(timeout=30)
    echoed = training.get_info().optimizer_config
    assert (echoed.type, echoed.model_extra["clip_norm"]) == ("tensafe_dp_sgd", 0.5)
    with pytest.raises(tinker.UnprocessableEntityError, match="tensafe_dp_sgd"):
        training.optim_step(types.AdamParams(learning_rate=0.1)).result(timeout=30)
    with pytest.raises(tinker.UnprocessableEntityError, match="tensafe_dp_sgd, fixed when it was created"):
        training.optim_step(OptimParamsBase(type="tensafe_dp_adamw", learning_rate=0.1)).result(timeout=30)
    done = training.optim_step(OptimParamsBase(type="tensafe_dp_sgd", learning_rate=0.1)).result(timeout=30)
    assert done.metrics["step"] == 1
