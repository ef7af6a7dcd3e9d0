"""Our answers, validated by the SDK's own models and read by its JSON reader."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from pydantic import TypeAdapter, ValidationError
from tinker import types
from tinker.types.future_completion import FutureCompletion
from tinker.types.try_again_response import TryAgainResponse

from tensafe.contracts.errors import BudgetExceeded, TensafeError, Unavailable
from tensafe.contracts.training import AdamWConfig, DpAdamWConfig
from tensafe.wire.ids import RequestId, RunId, SamplerId
from tensafe.wire.results import encode_forward_backward
from tensafe.wire.tinker_responses import futures, runs, sessions
from tensafe.wire.tinker_responses.base import ResponseModel, finite_metrics, to_json

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN = "s-1:train:0"
DP = DpAdamWConfig(
    type="tensafe_dp_adamw", clip_norm=1.0, noise_multiplier=1.0, delta=1e-5, batch_size=8, domain="d"
)
CHECKPOINT = runs.Checkpoint(
    checkpoint_id="weights/000001",
    checkpoint_type="training",
    time=NOW,
    tinker_path=f"tinker://{RUN}/weights/000001",
    size_bytes=5,
    user_metadata={"dp.epsilon": "0.5"},
    expires_at=NOW,
)
TRAINING_RUN = runs.TrainingRun(
    training_run_id=RUN,
    base_model="acme/tiny",
    model_owner="me",
    lora_rank=8,
    last_request_time=NOW,
    last_checkpoint=CHECKPOINT,
    user_metadata={"a": "b"},
)
CURSOR = runs.Cursor(offset=0, limit=20, total_count=1)
DATA = runs.ModelData(arch="llama", model_name="acme/tiny", tokenizer_id="acme/tokenizer")

ANSWERS: list[tuple[ResponseModel, Any]] = [
    (sessions.ClientConfig(), types.ClientConfigResponse),
    (sessions.ClientDynamicConfig(), types.ClientDynamicConfigResponse),
    (sessions.CreateSessionResponse(session_id="s", info_message="x"), types.CreateSessionResponse),
    (sessions.SessionHeartbeatResponse(), types.SessionHeartbeatResponse),
    (sessions.CreateSamplingSessionResponse(sampling_session_id="s"), types.CreateSamplingSessionResponse),
    (sessions.JoinSamplingSessionResponse(client_counter=1), types.JoinSamplingSessionResponse),
    (sessions.SamplerResponse(sampler_id="s", base_model="b", model_path="p"), types.GetSamplerResponse),
    (sessions.GetSessionResponse(training_run_ids=[RUN], sampler_ids=[]), types.GetSessionResponse),
    (sessions.ListSessionsResponse(sessions=["s"]), types.ListSessionsResponse),
    (
        sessions.ServerCapabilitiesResponse(
            supported_models=[
                sessions.SupportedModel(
                    model_name="m", max_context_length=8, trainable=True, sampleable=False
                )
            ]
        ),
        types.GetServerCapabilitiesResponse,
    ),
    (sessions.HealthResponse(), types.HealthResponse),
    (sessions.TelemetryResponse(), types.TelemetryResponse),
    (
        sessions.AuditLogResponse(
            entries=[sessions.AuditLogEntry(timestamp=NOW, event="run_created", event_details={"run": RUN})]
        ),
        types.AuditLogResponse,
    ),
    (futures.FutureResponse.of(RequestId(RunId("s-1", 0), 2)), types.UntypedAPIFuture),
    (futures.FutureResponse.of(RequestId(SamplerId("s-1", 0), 2), num_samples=3), types.UntypedAPIFuture),
    (futures.TryAgainResponse(request_id="r"), TryAgainResponse),
    (futures.RequestFailedResponse.of(BudgetExceeded("spent")), types.RequestFailedResponse),
    (
        futures.RetrieveFuturesResponse(
            completions=[
                futures.FutureFinished(request_id="a", response_payload_uncompressed_size=5),
                futures.FutureFailed(request_id="b"),
            ],
            cursor=2,
        ),
        types.FuturesRetrieveResponse,
    ),
    (futures.CreateModelResponse(model_id=RUN), types.CreateModelResponse),
    (futures.OptimStepResponse(metrics={"dp/epsilon": 0.5}), types.OptimStepResponse),
    (futures.SaveWeightsResponse(path="p"), types.SaveWeightsResponse),
    (futures.SaveWeightsForSamplerResponse(path="p"), types.SaveWeightsForSamplerResponseInternal),
    (
        futures.SaveWeightsForSamplerResponse(sampling_session_id="s"),
        types.SaveWeightsForSamplerResponseInternal,
    ),
    (futures.SaveWeightsExternalResponse(path="p", size_bytes=3), types.SaveWeightsExternalResponseInternal),
    (futures.LoadWeightsResponse(path="p", model_id=RUN), types.LoadWeightsResponse),
    (
        runs.GetInfoResponse(
            model_data=DATA, model_id=RUN, optimizer_config=DP, lora_rank=8, model_name="acme/tiny"
        ),
        types.GetInfoResponse,
    ),
    (CHECKPOINT, types.Checkpoint),
    (runs.CheckpointsListResponse(checkpoints=[CHECKPOINT], cursor=CURSOR), types.CheckpointsListResponse),
    (TRAINING_RUN, types.TrainingRun),
    (runs.TrainingRunsResponse(training_runs=[TRAINING_RUN], cursor=CURSOR), types.TrainingRunsResponse),
    (
        runs.WeightsInfoResponse(
            base_model="b",
            optimizer_config=AdamWConfig(),
            lora_rank=8,
            train_unembed=True,
            train_mlp=True,
            train_attn=False,
        ),
        types.WeightsInfoResponse,
    ),
    (
        runs.ExternalWeightsUrlsResponse(urls={"a.safetensors": "http://x"}, expires=NOW),
        types.ExternalWeightsUrlsResponse,
    ),
]


def kept(sent: Any, read: Any) -> bool:
    """Whether all that was sent is in what was read; times may be spelled differently."""
    if isinstance(sent, dict):
        return all(name in read and kept(value, read[name]) for name, value in sent.items())
    if isinstance(sent, list):
        return len(sent) == len(read) and all(map(kept, sent, read))
    return sent == read or (isinstance(sent, str) and datetime.fromisoformat(sent) == NOW)


@pytest.mark.parametrize(("ours", "theirs"), ANSWERS, ids=lambda one: getattr(one, "__name__", ""))
def test_the_sdk_reads_every_field_that_we_send(ours: ResponseModel, theirs: type) -> None:
    sent = orjson.loads(to_json(ours))
    read = orjson.loads(theirs.model_validate(sent).model_dump_json())
    sent.pop("queue_state_reason", None)
    assert kept(sent, read), (sent, read)


def test_every_answer_is_covered() -> None:
    modules = (futures, runs, sessions)
    models = {
        one
        for module in modules
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, ResponseModel) and one is not ResponseModel
    }
    nested = {sessions.SupportedModel, sessions.AuditLogEntry, futures.FutureFinished, futures.FutureFailed}
    nested |= {runs.ModelData, runs.Cursor, futures.CompleteMetadataResponse}
    assert models - {type(ours) for ours, _ in ANSWERS} == nested


def test_completions_are_told_apart() -> None:
    adapter = TypeAdapter(list[FutureCompletion])
    sent = [futures.FutureFinished(request_id="a"), futures.FutureFailed(request_id="b")]
    read = adapter.validate_python([orjson.loads(to_json(one)) for one in sent])
    assert [one.state for one in read] == ["finished", "failed"]


def test_failures_carry_code_and_category() -> None:
    assert orjson.loads(to_json(futures.RequestFailedResponse.of(BudgetExceeded("spent")))) == {
        "error": "[privacy_budget_exceeded] spent",
        "category": "user",
    }
    assert futures.RequestFailedResponse.of(Unavailable("busy")).category == "server"


def test_a_private_optimizer_is_echoed_whole() -> None:
    answer = runs.GetInfoResponse(
        model_data=DATA, model_id=RUN, optimizer_config=DP, lora_rank=8, model_name="acme/tiny"
    )
    read = types.GetInfoResponse.model_validate(orjson.loads(to_json(answer))).optimizer_config
    assert DpAdamWConfig.model_validate(read.model_dump()) == DP


def test_metrics_that_json_cannot_hold_are_said_to_be_so() -> None:
    metrics = {"loss": 1.0, "grad_norm": float("inf"), "x": float("nan")}
    answer = futures.OptimStepResponse(metrics=finite_metrics(metrics))
    assert orjson.loads(to_json(answer)) == {
        "metrics": {"loss": 1.0, "grad_norm_is_not_finite": 1.0, "x_is_not_finite": 1.0}
    }
    with pytest.raises(ValidationError):
        futures.OptimStepResponse(metrics=metrics)


@pytest.mark.parametrize("name", ["loss", "loss:sum:mean", ":sum", "loss:", "loss:Sum"])
def test_metric_names_that_the_client_fails_on_are_not_sent(name: str) -> None:
    with pytest.raises(TensafeError, match="name:reduction"):
        encode_forward_backward([], {name: 1.0})
