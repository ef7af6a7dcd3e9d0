"""The official SDK's clients, unmodified, against a server made of the wire layer alone.

No socket is opened: the SDK's HTTP client gets a transport in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import tinker
import torch
from tinker import types
from tinker.lib import internal_client_holder
from tinker.types.optimizer import OptimizerConfigBase, OptimParamsBase

from tensafe.contracts.errors import BudgetExceeded
from tensafe.contracts.payloads import CreatePayload, SavePayload
from tensafe.contracts.training import AdamParams, AdamWConfig, DpAdamWConfig
from tensafe.wire.forward_backward import ForwardBackwardSubmission
from tensafe.wire.ids import RequestId, RunId
from tensafe.wire.tinker_requests.models import OptimStep
from tensafe.wire.tinker_requests.sampling import SampleSubmission
from tensafe.wire.tinker_requests.weights import LoadWeights
from tensafe.wire.tinker_responses.sessions import ClientConfig
from tests.unit.wire.memory_server import BASE_MODEL, MemoryServer

MODEL_ID = "s-1:train:0"


def sdk_datum(tokens: list[int], **inputs: Any) -> types.Datum:
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def service(server: MemoryServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[tinker.ServiceClient]:
    real = internal_client_holder.AsyncTinker

    def in_memory(**kwargs: Any) -> Any:
        transport = httpx.MockTransport(server.handle)
        client = httpx.AsyncClient(transport=transport, base_url=kwargs["base_url"], follow_redirects=True)
        return real(http_client=client, **kwargs)

    monkeypatch.setattr(internal_client_holder, "AsyncTinker", in_memory)
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    monkeypatch.setenv("TINKER_TAGS", "a,b")
    client = tinker.ServiceClient(
        base_url="http://memory.test", api_key="tml-test", user_metadata={"team": "x"}, project_id="p-1"
    )
    yield client
    client.close("success", detail="done").result(timeout=20)


def train(service: tinker.ServiceClient, **options: Any) -> tinker.TrainingClient:
    return service.create_lora_training_client(BASE_MODEL, rank=8, **options).result()


def kept(server: MemoryServer, kind: type) -> list[Any]:
    return [one for one in server.seen if isinstance(one, kind)]


def test_a_training_run_from_session_to_checkpoint(
    server: MemoryServer, service: tinker.ServiceClient
) -> None:
    client = train(service, train_unembed=False, user_metadata={"k": "v"})
    data = [sdk_datum([1, 2], target_tokens=[2, 3], weights=[1.0, 0.0])] * 3
    forward = client.forward(data, "cross_entropy")
    backward = client.forward_backward(data, "cross_entropy")
    step = client.optim_step(types.AdamParams(learning_rate=2e-4))
    assert forward.result().metrics["loss:sum"] == -15.0
    outputs = backward.result().loss_fn_outputs
    assert [one["logprobs"].tolist() for one in outputs] == [[-2.0, -3.0]] * 3
    assert step.result().metrics == {"dp/epsilon": 0.25}
    saved = client.save_state("000001", ttl_seconds=3600, overwrite=True, user_metadata={"a": "b"}).result()
    assert saved.path == f"tinker://{MODEL_ID}/weights/000001"

    session, create, *_ = server.seen
    assert (sorted(session.tags), session.user_metadata, session.project_id) == (
        ["a", "b"],
        {"team": "x"},
        "p-1",
    )
    assert isinstance(create, CreatePayload)
    assert (create.lora.rank, create.lora.seed, create.lora.train_unembed) == (8, 7, False)
    assert create.optimizer == AdamWConfig()
    submissions = kept(server, ForwardBackwardSubmission)
    assert [(one.seq_id, one.request.forward_only) for one in submissions] == [(1, True), (2, False)]
    assert kept(server, OptimStep) == [
        OptimStep(RequestId(RunId("s-1", 0), 3), AdamParams(learning_rate=2e-4), None)
    ]
    assert kept(server, SavePayload) == [
        SavePayload(name="000001", overwrite=True, ttl_s=3600, user_metadata={"a": "b"})
    ]
    info = client.get_info()
    assert (info.model_id, info.model_data.model_name, info.lora_rank) == (MODEL_ID, BASE_MODEL, 8)


def test_bodies_travel_compressed_and_in_chunks_of_the_size_we_ask_for(
    monkeypatch: pytest.MonkeyPatch, server: MemoryServer, service: tinker.ServiceClient
) -> None:
    client = train(service)
    length = 200_000
    example = sdk_datum([1] * length, target_tokens=[2] * length, weights=[1.0] * length)
    output = client.forward_backward([example] * 3, "cross_entropy").result()
    submissions = kept(server, ForwardBackwardSubmission)
    assert sorted(one.seq_id for one in submissions) == [1, 2, 3]
    assert submissions[-1].seq_id == 1  # the first chunk is sent last
    assert output.metrics == {"loss:sum": -6.0 * length, "dp_epsilon:max": 0.5}
    sent = [h for h in server.headers if h.get("content-type") == "application/x-protobuf"]
    assert {h["content-encoding"] for h in sent} == {"zstd"}
    assert all(int(h["content-length"]) < 20_000 for h in sent)
    assert all(h["x-api-key"] == "tml-test" for h in sent)


def test_a_private_run_is_asked_for_with_the_sdks_own_types(
    server: MemoryServer, service: tinker.ServiceClient
) -> None:
    private = {"noise_multiplier": 1.0, "clip_norm": 0.5, "delta": 1e-5, "batch_size": 4, "domain": "d"}
    client = train(service, optimizer=OptimizerConfigBase(type="tensafe_dp_adamw", **private))
    client.optim_step(OptimParamsBase(type="tensafe_dp_adamw", learning_rate=0.1)).result()
    expected = DpAdamWConfig(type="tensafe_dp_adamw", **private)
    assert kept(server, CreatePayload)[0].optimizer == expected
    assert kept(server, OptimStep)[0].optimizer == "tensafe_dp_adamw"
    echoed = client.get_info().optimizer_config
    assert echoed.type == "tensafe_dp_adamw"
    assert echoed.model_extra is not None
    assert echoed.model_extra["clip_norm"] == 0.5


def test_an_optimizer_that_we_lack_is_refused_at_once(service: tinker.ServiceClient) -> None:
    with pytest.raises(tinker.BadRequestError, match="dimuon"):
        train(service, optimizer=types.DimuonOptimizerConfig())


def test_a_custom_loss_runs_in_the_client(server: MemoryServer, service: tinker.ServiceClient) -> None:
    client = train(service)
    data = [sdk_datum([1, 2], target_tokens=[2, 3])]

    def loss(_: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        return (logprobs[0] ** 2).sum(), {"mine:sum": 1.0}

    output = client.forward_backward_custom(data, loss).result()
    assert output.metrics["loss:sum"] == 13.0
    forward, backward = kept(server, ForwardBackwardSubmission)
    assert (forward.request.forward_only, backward.request.forward_only) == (True, False)
    assert backward.request.data[0].inputs["weights"].tolist() == [4.0, 6.0]  # minus the gradient


def test_a_failed_operation_reaches_the_caller_with_its_category(
    server: MemoryServer, service: tinker.ServiceClient
) -> None:
    client = train(service)
    server._submit = lambda request_id, *_: MemoryServer._submit(
        server, request_id, BudgetExceeded("the budget of epsilon 3 is spent")
    )
    with pytest.raises(tinker.RequestFailedError, match=r"\[privacy_budget_exceeded\] the budget") as caught:
        client.optim_step(types.AdamParams()).result()
    assert caught.value.category.name == "User"


def test_checkpoints_of_every_kind(server: MemoryServer, service: tinker.ServiceClient) -> None:
    client = train(service)
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    assert client.save_weights_for_sampler("final").result().path.endswith("/sampler_weights/final")
    exported = client.save_weights_external("hf", age_encryption_recipients=[recipient]).result()
    sampler = client.save_weights_and_get_sampling_client().result()
    assert types.ParsedCheckpointTinkerPath.from_tinker_path(exported.path).checkpoint_type == "external"
    plain, external, bound = kept(server, SavePayload)
    assert (plain.name, plain.sampling_session_id) == ("final", None)
    assert external.age_recipients == (recipient,)
    assert bound.sampling_session_id == "s-1:sample:0"
    assert sampler.sample(types.ModelInput.from_ints([1]), 1, types.SamplingParams(max_tokens=1)).result()


def test_resuming_creates_the_run_that_the_client_names_itself(
    server: MemoryServer, service: tinker.ServiceClient
) -> None:
    train(service)
    path = f"tinker://{MODEL_ID}/weights/000001"
    client = service.create_training_client_from_state_with_optimizer(path).result()
    assert client.get_info().model_id == "s-1:train:1"
    (load,) = kept(server, LoadWeights)
    assert load.request_id == RequestId(RunId("s-1", 1), 0)
    assert (str(load.path), load.creates_run, load.with_optimizer) == (path, True, True)
    with pytest.warns(FutureWarning):
        loaded = client.load_state(path).result()
    assert loaded.path == path
    second = kept(server, LoadWeights)[1]
    assert (str(second.request_id), second.creates_run, second.with_optimizer) == (
        "s-1:train:1:1",
        False,
        False,
    )


def test_sampling_with_every_option_that_we_have(server: MemoryServer, service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=BASE_MODEL).result()
    params = types.SamplingParams(max_tokens=2, seed=5, stop=["\n"], temperature=0.5, top_k=3, top_p=0.9)
    response = sampler.sample(
        types.ModelInput.from_ints([3, 4, 5, 6]),
        2,
        params,
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=1,
        prompt_logprobs_last_n=2,
    ).result()
    assert response.prompt_logprobs == [None, None, -5.0, -6.0]
    assert response.topk_prompt_logprobs == [None, None, [(1, -1.0), (2, -2.0)], [(1, -1.0), (2, -2.0)]]
    assert [one.sequence_id for one in response.sequences] == ["s-1:sample:0:0:0", "s-1:sample:0:0:1"]
    assert [one.tokens for one in response.sequences] == [[0, 1], [1, 2]]
    (submission,) = kept(server, SampleSubmission)
    request = submission.request
    assert (request.prompt, request.num_samples) == ((3, 4, 5, 6), 2)
    assert request.params.model_dump() == {
        "max_tokens": 2,
        "seed": 5,
        "stop": ("\n",),
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
    }
    assert (request.topk_prompt_logprobs, request.topk_sample_logprobs) == (2, 1)


def test_sampling_options_that_we_lack_are_refused_at_once(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=BASE_MODEL, record_stability_info=True).result()
    prompt, params = types.ModelInput.from_ints([1, 2]), types.SamplingParams(max_tokens=1)
    with pytest.raises(tinker.BadRequestError, match="record_stability_info"):
        sampler.sample(prompt, 1, params).result()
    sampler = service.create_sampling_client(base_model=BASE_MODEL).result()
    with pytest.raises(tinker.BadRequestError, match="prompt_alt_tokens_k"):
        sampler.sample(prompt, 1, params, prompt_alt_tokens_k=1).result()
    targets = types.TensorData(data=[1], dtype="int64", shape=[1, 1])
    with pytest.raises(tinker.BadRequestError, match="target_prompt_logprobs"):
        sampler.sample(prompt, 1, params, target_prompt_logprobs=targets).result()


def test_the_sdk_takes_every_flag_that_we_send() -> None:
    theirs = types.ClientConfigResponse.model_validate(ClientConfig().model_dump())
    ours = ClientConfig().model_dump()
    assert {name: getattr(theirs, name) for name in ours} == ours
