"""JSON bodies: what each becomes, what is refused, and under which field."""

from __future__ import annotations

import json
from typing import Any

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import BaseModel

from tensafe.contracts.errors import InvalidRequest, PayloadTooLarge, TensafeError, Unsupported
from tensafe.contracts.payloads import SavePayload
from tensafe.contracts.training import AdamParams, DpAdamWConfig, DpSgdConfig, SgdParams
from tensafe.wire.ids import RequestId, RunId, SamplerId
from tensafe.wire.json_body import parse_json
from tensafe.wire.tinker_requests.futures import RetrieveFutureBody, RetrieveFuturesBody
from tensafe.wire.tinker_requests.models import CreateModelBody, OptimStepBody
from tensafe.wire.tinker_requests.sampling import CreateSamplingSessionBody, SampleBody
from tensafe.wire.tinker_requests.sessions import CreateSessionBody, FinishSessionBody, TelemetryBody
from tensafe.wire.tinker_requests.weights import (
    CheckpointTtlBody,
    LoadWeightsBody,
    SaveWeightsBody,
    SaveWeightsExternalBody,
    SaveWeightsForSamplerBody,
)

RUN = "s-1:train:0"
PARAMS = {"learning_rate": 0.1, "eps": 1e-8}
DP = {
    "type": "tensafe_dp_adamw",
    "clip_norm": 1.0,
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "batch_size": 8,
    "domain": "d",
}
VALID: dict[type[BaseModel], dict[str, Any]] = {
    CreateSessionBody: {"tags": [], "user_metadata": None, "sdk_version": "0.38.0"},
    CreateModelBody: {
        "session_id": "s-1",
        "model_seq_id": 0,
        "base_model": "acme/tiny",
        "lora_config": {"rank": 8},
    },
    OptimStepBody: {"model_id": RUN, "seq_id": 2, "adam_params": {"learning_rate": 0.1}},
    SaveWeightsBody: {"model_id": RUN, "seq_id": 2, "path": "final"},
    SaveWeightsForSamplerBody: {"model_id": RUN, "seq_id": 2, "path": "final"},
    SaveWeightsExternalBody: {"model_id": RUN, "seq_id": 2, "path": "final"},
    LoadWeightsBody: {
        "session_id": "s-1",
        "model_seq_id": 1,
        "path": f"tinker://{RUN}/weights/a",
        "optimizer": True,
    },
    CreateSamplingSessionBody: {"session_id": "s-1", "sampling_session_seq_id": 0, "base_model": "acme/tiny"},
    SampleBody: {
        "sampling_session_id": "s-1:sample:0",
        "seq_id": 0,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": {"max_tokens": 4},
    },
    RetrieveFutureBody: {"request_id": f"{RUN}:2"},
    RetrieveFuturesBody: {"target": {"type": "sampling_session", "sampling_session_id": "s-1:sample:0"}},
    FinishSessionBody: {"reason": {"type": "success"}, "detail": None},
    CheckpointTtlBody: {"ttl_seconds": 3600},
}


def parse(model: type[BaseModel], **changes: Any) -> Any:
    values = {name: value for name, value in (VALID[model] | changes).items() if value is not ...}
    return parse_json(model, json.dumps(values).encode(), max_bytes=100_000)


def convert(body: Any) -> Any:
    """Every `to_...` method of a body, so that each refusal shows."""
    for name in [name for name in dir(body) if name.startswith("to_")]:
        arguments = (
            {"seed_if_absent": 7} if isinstance(body, CreateModelBody) and name == "to_payload" else {}
        )
        getattr(body, name)(**arguments)
    return body


def refused(
    model: type[BaseModel], error: type[TensafeError] = InvalidRequest, **changes: Any
) -> TensafeError:
    with pytest.raises(error) as caught:
        convert(parse(model, **changes))
    assert type(caught.value) is error
    return caught.value


@pytest.mark.parametrize("model", VALID)
def test_the_examples_are_valid_and_unknown_fields_are_not(model: type[BaseModel]) -> None:
    convert(parse(model))
    error = refused(model, surprise=1)
    assert error.field == "surprise"
    assert error.message == "surprise is not a field of this request"


def test_a_body_over_the_cap_is_not_parsed() -> None:
    with pytest.raises(PayloadTooLarge):
        parse_json(FinishSessionBody, b" " * 101, max_bytes=100)


WRONG: list[tuple[type[BaseModel], dict[str, Any], str]] = [
    (CreateSessionBody, {"tags": "a"}, "tags"),
    (CreateSessionBody, {"sdk_version": ...}, "sdk_version"),
    (CreateSessionBody, {"user_metadata": {"a": 1}}, "user_metadata.a"),
    (CreateSessionBody, {"user_metadata": {"a": "x" * 5000}}, "user_metadata"),
    (CreateSessionBody, {"user_metadata": {str(i): "" for i in range(65)}}, "user_metadata"),
    (CreateSessionBody, {"type": "other"}, "type"),
    (CreateModelBody, {"session_id": "a:b"}, "session_id"),
    (CreateModelBody, {"model_seq_id": -1}, "model_seq_id"),
    (CreateModelBody, {"model_seq_id": "0"}, "model_seq_id"),
    (CreateModelBody, {"model_seq_id": True}, "model_seq_id"),
    (CreateModelBody, {"lora_config": {"rank": 0}}, "lora_config.rank"),
    (CreateModelBody, {"lora_config": {"rank": 8, "alpha": 32}}, "lora_config.alpha"),
    (CreateModelBody, {"lora_config": {"rank": 8, "seed": -1}}, "lora_config.seed"),
    (
        CreateModelBody,
        {"lora_config": {"rank": 8, "train_mlp": False, "train_attn": False, "train_unembed": False}},
        "lora_config",
    ),
    (CreateModelBody, {"optimizer_config": {}}, "optimizer_config.type"),
    (CreateModelBody, {"optimizer_config": {"type": 5}}, "optimizer_config.type"),
    (CreateModelBody, {"optimizer_config": {"type": "adamw", "lr": 1}}, "optimizer_config.lr"),
    (CreateModelBody, {"optimizer_config": DP | {"clip_norm": 0}}, "optimizer_config.clip_norm"),
    (CreateModelBody, {"optimizer_config": DP | {"target_epsilon": 3}}, "optimizer_config"),
    (OptimStepBody, {"seq_id": 0}, "seq_id"),
    (OptimStepBody, {"seq_id": ...}, "seq_id"),
    (OptimStepBody, {"adam_params": ...}, "adam_params"),
    (OptimStepBody, {"optimizer_params": {"type": "adamw"}}, "adam_params"),
    (OptimStepBody, {"adam_params": {"lr": 1}}, "adam_params.lr"),
    (OptimStepBody, {"adam_params": {"beta1": 1.0}}, "adam_params.beta1"),
    (OptimStepBody, {"adam_params": ..., "optimizer_params": {"learning_rate": 1}}, "optimizer_params.type"),
    (
        OptimStepBody,
        {"adam_params": ..., "optimizer_params": {"type": "tensafe_dp_sgd", "learning_rate": 1, "eps": 1e-8}},
        "optimizer_params.eps",
    ),
    (
        OptimStepBody,
        {"adam_params": ..., "optimizer_params": {"type": "tensafe_dp_sgd"}},
        "optimizer_params.learning_rate",
    ),
    (OptimStepBody, {"model_id": "nope"}, "model_id"),
    (SaveWeightsBody, {"path": "a/b"}, "path"),
    (SaveWeightsBody, {"path": ...}, "path"),
    (SaveWeightsBody, {"path": "session-weights-0"}, "path"),
    (SaveWeightsBody, {"ttl_seconds": 3599}, "ttl_seconds"),
    (SaveWeightsBody, {"ttl_seconds": 10**9}, "ttl_seconds"),
    (SaveWeightsForSamplerBody, {"sampling_session_seq_id": 0}, "path"),
    (SaveWeightsForSamplerBody, {"path": ...}, "path"),
    (LoadWeightsBody, {"model_seq_id": ...}, "model_id"),
    (LoadWeightsBody, {"model_id": RUN, "seq_id": 1}, "model_id"),
    (LoadWeightsBody, {"path": "final"}, "path"),
    (LoadWeightsBody, {"path": f"tinker://{RUN}/sampler_weights/a"}, "path"),
    (LoadWeightsBody, {"optimizer_config": {"type": "adamw"}}, "optimizer_config"),
    (LoadWeightsBody, {"optimizer": ...}, "optimizer"),
    (CreateSamplingSessionBody, {"base_model": ...}, "model_path"),
    (CreateSamplingSessionBody, {"model_path": "weights/a"}, "model_path"),
    (SampleBody, {"sampling_session_id": ...}, "sampling_session_id"),
    (SampleBody, {"seq_id": ...}, "seq_id"),
    (SampleBody, {"num_samples": 0}, "num_samples"),
    (SampleBody, {"num_samples": 100_000}, "num_samples"),
    (SampleBody, {"prompt": {"chunks": []}}, "prompt"),
    (SampleBody, {"prompt": {"chunks": [{"type": "encoded_text"}]}}, "prompt.chunks[0].tokens"),
    (SampleBody, {"prompt": {"chunks": [{"tokens": [-1]}]}}, "prompt.chunks[0].tokens"),
    (SampleBody, {"prompt": {"chunks": [{"tokens": [2**31]}]}}, "prompt.chunks[0].tokens"),
    (SampleBody, {"prompt": {"chunks": [{"tokens": [1], "text": "x"}]}}, "prompt.chunks[0].text"),
    (SampleBody, {"sampling_params": {"max_tokens": 0}}, "sampling_params.max_tokens"),
    (SampleBody, {"sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
    (SampleBody, {"sampling_params": {"best_of": 2}}, "sampling_params.best_of"),
    (SampleBody, {"sampling_params": {"stop": [""]}}, "sampling_params.stop"),
    (SampleBody, {"sampling_params": {"stop": ""}}, "sampling_params.stop"),
    (SampleBody, {"sampling_params": {"stop": ["x"] * 65}}, "sampling_params.stop"),
    (SampleBody, {"sampling_params": {"stop": [-1]}}, "sampling_params.stop"),
    (SampleBody, {"sampling_params": {"stop": [2**80]}}, "sampling_params.stop"),
    (SampleBody, {"sampling_params": {"top_k": 2**31}}, "sampling_params.top_k"),
    (SampleBody, {"sampling_params": {"top_k": 2**80}}, "sampling_params.top_k"),
    (SampleBody, {"sampling_params": {"seed": 2**80}}, "sampling_params.seed"),
    (SampleBody, {"sampling_params": {"max_tokens": 2**80}}, "sampling_params.max_tokens"),
    (SampleBody, {"num_samples": 2**80}, "num_samples"),
    (SampleBody, {"topk_prompt_logprobs": 1000}, "topk_prompt_logprobs"),
    (SampleBody, {"topk_sample_logprobs": -1}, "topk_sample_logprobs"),
    (SampleBody, {"prompt_logprobs_last_n": 1}, "prompt_logprobs_last_n"),
    (SampleBody, {"prompt_logprobs": True, "prompt_logprobs_last_n": 0}, "prompt_logprobs_last_n"),
    (SampleBody, {"prompt_logprobs": True, "prompt_logprobs_last_n": 3}, "prompt_logprobs_last_n"),
    (RetrieveFutureBody, {"request_id": "r-123"}, "request_id"),
    (RetrieveFuturesBody, {"prev_cursor": -1}, "prev_cursor"),
    (RetrieveFuturesBody, {"retrieved_request_ids": ["x"]}, "retrieved_request_ids[0]"),
    (RetrieveFuturesBody, {"target": {"sampling_session_id": RUN}}, "target.sampling_session_id"),
    (FinishSessionBody, {"reason": {"type": "bored"}}, "reason.type"),
    (CheckpointTtlBody, {"ttl_seconds": ...}, "ttl_seconds"),
]


@pytest.mark.parametrize(("model", "changes", "field"), WRONG)
def test_what_is_wrong_is_named(model: type[BaseModel], changes: dict[str, Any], field: str) -> None:
    assert refused(model, **changes).field == field


IMAGE = {"type": "image", "data": "", "format": "png"}
LACKING: list[tuple[type[BaseModel], dict[str, Any], str]] = [
    (CreateModelBody, {"optimizer_config": {"type": "dimuon", "version": 1}}, "optimizer_config.type"),
    (CreateModelBody, {"lora_config": ...}, "lora_config"),
    (
        OptimStepBody,
        {"adam_params": ..., "optimizer_params": {"type": "dimuon", "learning_rate": 1}},
        "optimizer_params.type",
    ),
    (SaveWeightsForSamplerBody, {"path": ..., "sampling_session_seq_id": 0, "kind": "inflight"}, "kind"),
    (LoadWeightsBody, {"weights_access_token": "tml-x"}, "weights_access_token"),
    (LoadWeightsBody, {"path": f"tinker://{RUN}/external_weights/a"}, "path"),
    (CreateSamplingSessionBody, {"model_path": f"tinker://{RUN}/external_weights/a"}, "model_path"),
    (SampleBody, {"base_model": "acme/tiny"}, "base_model"),
    (SampleBody, {"model_path": f"tinker://{RUN}/weights/a"}, "model_path"),
    (SampleBody, {"target_prompt_logprobs": {"data": [1]}}, "target_prompt_logprobs"),
    (SampleBody, {"prompt_alt_tokens_k": 1}, "prompt_alt_tokens_k"),
    (SampleBody, {"record_stability_info": True}, "record_stability_info"),
    (
        SampleBody,
        {"prompt": {"chunks": [{"type": "image", "data": "", "format": "png"}]}},
        "prompt.chunks[0].type",
    ),
]


@pytest.mark.parametrize(("model", "changes", "field"), LACKING)
def test_what_we_lack_is_refused_by_name(model: type[BaseModel], changes: dict[str, Any], field: str) -> None:
    error = refused(model, Unsupported, **changes)
    assert error.field == field


def test_messages_do_not_repeat_what_was_sent() -> None:
    for changes in ({"prompt": {"chunks": [{"tokens": ["my secret"]}]}}, {"num_samples": "my secret"}):
        assert "secret" not in refused(SampleBody, **changes).message
    assert "tml-" not in refused(LoadWeightsBody, Unsupported, weights_access_token="tml-secret").message


def test_a_run_is_created_with_the_seed_of_the_client_or_ours() -> None:
    body = parse(CreateModelBody)
    assert body.to_payload(seed_if_absent=7).lora.seed == 7
    assert str(body.to_request_id()) == "s-1:train:0:0"
    seeded = parse(CreateModelBody, lora_config={"rank": 8, "seed": 0}, optimizer_config=DP)
    assert seeded.to_payload(seed_if_absent=7).lora.seed == 0
    assert isinstance(seeded.to_payload(seed_if_absent=7).optimizer, DpAdamWConfig)
    sgd = parse(CreateModelBody, optimizer_config=DP | {"type": "tensafe_dp_sgd"})
    assert isinstance(sgd.to_payload(seed_if_absent=7).optimizer, DpSgdConfig)


@pytest.mark.parametrize(
    ("given", "optimizer"),
    [
        ({"adam_params": {"learning_rate": 0.1, "eps": 1e-8}}, None),
        ({"adam_params": ..., "optim_params": {"learning_rate": 0.1, "eps": 1e-8}}, None),
        (
            {"adam_params": ..., "optimizer_params": {"type": "adamw", "learning_rate": 0.1, "eps": 1e-8}},
            "adamw",
        ),
    ],
)
def test_a_step_under_each_of_its_names(given: dict[str, Any], optimizer: str | None) -> None:
    step = parse(OptimStepBody, **given).to_optim_step()
    assert step.request_id == RequestId(RunId("s-1", 0), 2)
    assert step.params == AdamParams(learning_rate=0.1, eps=1e-8)
    assert step.optimizer == optimizer


def test_a_step_of_sgd_has_sgds_parameters() -> None:
    given = {"type": "tensafe_dp_sgd", "learning_rate": 0.1, "weight_decay": 0.2}
    step = parse(OptimStepBody, adam_params=..., optimizer_params=given).to_optim_step()
    assert step.params == SgdParams(learning_rate=0.1, weight_decay=0.2)
    assert step.optimizer == "tensafe_dp_sgd"


def test_weights_for_a_sampling_session_have_a_name_of_their_own() -> None:
    body = parse(SaveWeightsForSamplerBody, path=..., sampling_session_seq_id=3)
    assert body.to_payload() == SavePayload(name="session-weights-3", sampling_session_id="s-1:sample:3")
    assert str(body.to_request_id()) == f"{RUN}:2"


def test_stop_is_kept_as_it_was_given() -> None:
    for stop in (None, "\n", ["a", "b"], [1, 2], []):
        params = parse(SampleBody, sampling_params={"stop": stop}).to_sample().request.params
        assert params.stop == (tuple(stop) if isinstance(stop, list) else stop)


def test_polls_name_their_session_and_block() -> None:
    target = {"sampling_session_id": "s-1:sample:0", "cloned_sampler_id": 5}
    body = parse(RetrieveFuturesBody, target=target, timeout=0, retrieved_request_ids=["s-1:sample:0:1"])
    assert (body.to_sampler_id(), body.target.cloned_sampler_id, body.timeout) == (SamplerId("s-1", 0), 5, 0)
    assert body.to_retrieved() == (RequestId(SamplerId("s-1", 0), 1),)


def test_telemetry_shows_nothing_of_its_events() -> None:
    values = {
        "events": [{"request_headers": {"x-api-key": "tml-secret"}}],
        "sdk_version": "1",
        "session_id": "s",
    }
    body = parse_json(TelemetryBody, json.dumps(values | {"platform": "x"}).encode(), max_bytes=10_000)
    assert len(body.events) == 1
    assert "secret" not in repr(body)


def ssh(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def test_age_recipients_of_each_kind_pass() -> None:
    recipients = [
        str(pyrage.x25519.Identity.generate().to_public()),
        ssh(ed25519.Ed25519PrivateKey.generate()),
        ssh(rsa.generate_private_key(65537, 2048)) + " a comment",
    ]
    payload = parse(SaveWeightsExternalBody, age_encryption_recipients=recipients).to_payload()
    assert payload.age_recipients == tuple(recipients)


def test_recipients_that_nobody_could_decrypt_for_are_refused() -> None:
    good = str(pyrage.x25519.Identity.generate().to_public())
    mistyped = good[:-1] + ("q" if good[-1] != "q" else "p")
    for bad in (mistyped, "age1", "", "me@example.com", ssh(ec.generate_private_key(ec.SECP256R1()))):
        error = refused(SaveWeightsExternalBody, age_encryption_recipients=[good, bad])
        assert error.field == "age_encryption_recipients[1]"
    for many in ([], [good, good], [str(i) for i in range(11)]):
        assert refused(SaveWeightsExternalBody, age_encryption_recipients=many).field is not None


def test_a_secret_key_is_refused_and_not_repeated() -> None:
    secret = str(pyrage.x25519.Identity.generate())
    error = refused(SaveWeightsExternalBody, age_encryption_recipients=[secret])
    assert "secret key" in error.message
    assert secret[20:] not in error.message
