"""A server in memory that answers the SDK with the wire layer alone: bodies in, contracts, bodies out.

It computes nothing: a forward pass returns minus the token ids, sampling counts upwards. What it keeps
in `seen` is what a real server would hand on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np

from tensafe.contracts.errors import Conflict, TensafeError
from tensafe.contracts.sampling import SampleResult, Sequence, TopkLogprobs
from tensafe.wire import results
from tensafe.wire.compression import decode_body
from tensafe.wire.forward_backward import decode_request
from tensafe.wire.ids import RequestId, RunId, SamplerId
from tensafe.wire.json_body import RequestModel, parse_json
from tensafe.wire.paths import CheckpointPath
from tensafe.wire.tinker_requests import futures, models, sampling, sessions, weights
from tensafe.wire.tinker_responses import futures as answers
from tensafe.wire.tinker_responses import runs as run_answers
from tensafe.wire.tinker_responses import sessions as session_answers
from tensafe.wire.tinker_responses.base import ResponseModel, to_json

PROTOBUF = "application/x-protobuf"
CAP = 16 * 1024 * 1024
BASE_MODEL = "acme/tiny"
Outcome = ResponseModel | bytes | TensafeError


class MemoryServer:
    """Answers `handle(request)`; every future is done as soon as it is submitted."""

    def __init__(self, config: session_answers.ClientConfig | None = None) -> None:
        self.config = config or session_answers.ClientConfig()
        self.seen: list[Any] = []
        self.headers: list[httpx.Headers] = []
        self.done: dict[str, Outcome] = {}
        self.order: dict[str, list[str]] = {}
        self._routes: dict[str, Callable[[bytes], ResponseModel]] = {
            "client/config": self._config,
            "client/dynamic_config": self._dynamic_config,
            "create_session": self._create_session,
            "session_heartbeat": self._heartbeat,
            "create_model": self._create_model,
            "get_info": self._get_info,
            "optim_step": self._optim_step,
            "save_weights": self._save,
            "save_weights_for_sampler": self._save_for_sampler,
            "save_weights_external": self._save_external,
            "load_weights": self._load,
            "create_sampling_session": self._create_sampling_session,
            "asample": self._sample,
            "retrieve_futures": self._retrieve_futures,
            "telemetry": self._telemetry,
        }

    async def handle(self, request: httpx.Request) -> httpx.Response:
        """One exchange; deliberate errors become 4xx with a body, as the SDK needs."""
        path = request.url.path.removeprefix("/api/v1/")
        body = await request.aread()
        self.headers.append(request.headers)
        try:
            if path == "forward_backward":
                return _json(self._forward_backward(request.headers, body))
            if path == "retrieve_future":
                return self._retrieve_future(body)
            if path.startswith("samplers/"):
                sampler = SamplerId.parse(path.removeprefix("samplers/"))
                return _json(session_answers.SamplerResponse(sampler_id=str(sampler), base_model=BASE_MODEL))
            if path.endswith("/finish"):
                self._keep(parse_json(sessions.FinishSessionBody, body, max_bytes=CAP))
                return httpx.Response(204)
            return _json(self._routes[path](body))
        except TensafeError as error:
            status = 409 if isinstance(error, Conflict) else 400
            return httpx.Response(status, json={"detail": error.message, "field": error.field})

    def _parse(self, model: type[RequestModel], body: bytes) -> Any:
        return parse_json(model, body, max_bytes=CAP)

    def _keep(self, value: Any) -> None:
        self.seen.append(value)

    def _submit(self, request_id: RequestId, outcome: Outcome, samples: int | None = None) -> ResponseModel:
        self.done[str(request_id)] = outcome
        self.order.setdefault(str(request_id.owner), []).append(str(request_id))
        return answers.FutureResponse.of(request_id, num_samples=samples)

    def _config(self, body: bytes) -> ResponseModel:
        self._parse(sessions.ClientConfigBody, body)
        return self.config

    def _dynamic_config(self, body: bytes) -> ResponseModel:
        self._parse(sessions.ClientConfigBody, body)
        return session_answers.ClientDynamicConfig()

    def _create_session(self, body: bytes) -> ResponseModel:
        self._keep(self._parse(sessions.CreateSessionBody, body))
        return session_answers.CreateSessionResponse(session_id="s-1")

    def _heartbeat(self, body: bytes) -> ResponseModel:
        self._parse(sessions.SessionHeartbeatBody, body)
        return session_answers.SessionHeartbeatResponse()

    def _telemetry(self, body: bytes) -> ResponseModel:
        self._parse(sessions.TelemetryBody, body)
        return session_answers.TelemetryResponse()

    def _create_model(self, body: bytes) -> ResponseModel:
        create = self._parse(models.CreateModelBody, body)
        payload = create.to_payload(seed_if_absent=7)
        self._keep(payload)
        request_id = create.to_request_id()
        return self._submit(request_id, answers.CreateModelResponse(model_id=str(request_id.owner)))

    def _get_info(self, body: bytes) -> ResponseModel:
        run = self._parse(models.GetInfoBody, body).to_run_id()
        data = run_answers.ModelData(arch="llama", model_name=BASE_MODEL)
        created = next(one for one in self.seen if hasattr(one, "optimizer"))
        return run_answers.GetInfoResponse(
            model_data=data,
            model_id=str(run),
            optimizer_config=created.optimizer,
            lora_rank=8,
            model_name=BASE_MODEL,
        )

    def _forward_backward(self, headers: httpx.Headers, body: bytes) -> ResponseModel:
        raw = decode_body(body, headers.get("content-encoding"), max_bytes=CAP)
        submission = decode_request(raw)
        self._keep(submission)
        logprobs = [-one.inputs["target_tokens"].astype(np.float32) for one in submission.request.data]
        metrics = {"loss:sum": float(sum(array.sum() for array in logprobs)), "dp_epsilon:max": 0.5}
        outcome = results.encode_forward_backward(logprobs, metrics)
        return self._submit(RequestId(submission.run, submission.seq_id), outcome)

    def _optim_step(self, body: bytes) -> ResponseModel:
        step = self._parse(models.OptimStepBody, body).to_optim_step()
        self._keep(step)
        return self._submit(step.request_id, answers.OptimStepResponse(metrics={"dp/epsilon": 0.25}))

    def _save(self, body: bytes) -> ResponseModel:
        save = self._parse(weights.SaveWeightsBody, body)
        payload = save.to_payload()
        self._keep(payload)
        path = CheckpointPath(RunId.parse(save.model_id), "weights", payload.name)
        return self._submit(save.to_request_id(), answers.SaveWeightsResponse(path=str(path)))

    def _save_for_sampler(self, body: bytes) -> ResponseModel:
        save = self._parse(weights.SaveWeightsForSamplerBody, body)
        payload = save.to_payload()
        self._keep(payload)
        if payload.sampling_session_id is not None:
            answer = answers.SaveWeightsForSamplerResponse(sampling_session_id=payload.sampling_session_id)
        else:
            path = CheckpointPath(RunId.parse(save.model_id), "sampler_weights", payload.name)
            answer = answers.SaveWeightsForSamplerResponse(path=str(path))
        return self._submit(save.to_request_id(), answer)

    def _save_external(self, body: bytes) -> ResponseModel:
        save = self._parse(weights.SaveWeightsExternalBody, body)
        payload = save.to_payload()
        self._keep(payload)
        path = CheckpointPath(RunId.parse(save.model_id), "external_weights", payload.name)
        return self._submit(save.to_request_id(), answers.SaveWeightsExternalResponse(path=str(path)))

    def _load(self, body: bytes) -> ResponseModel:
        load = self._parse(weights.LoadWeightsBody, body).to_load_weights()
        self._keep(load)
        answer = answers.LoadWeightsResponse(path=str(load.path), model_id=str(load.request_id.owner))
        return self._submit(load.request_id, answer)

    def _create_sampling_session(self, body: bytes) -> ResponseModel:
        create = self._parse(sampling.CreateSamplingSessionBody, body)
        self._keep(create.to_path())
        return session_answers.CreateSamplingSessionResponse(sampling_session_id=str(create.to_sampler_id()))

    def _sample(self, body: bytes) -> ResponseModel:
        sample = self._parse(sampling.SampleBody, body).to_sample()
        self._keep(sample)
        result = results.keep_last_prompt_logprobs(_sampled(sample.request), sample.prompt_logprobs_last_n)
        return self._submit(sample.request_id, results.encode_sample(result), sample.request.num_samples)

    def _retrieve_future(self, body: bytes) -> httpx.Response:
        asked = self._parse(futures.RetrieveFutureBody, body)
        outcome = self.done[str(asked.to_request_id())]
        if isinstance(outcome, TensafeError):
            return _json(answers.RequestFailedResponse.of(outcome))
        if isinstance(outcome, bytes):
            if asked.allow_metadata_only:
                return _json(answers.CompleteMetadataResponse(response_payload_size=len(outcome)))
            return httpx.Response(200, content=outcome, headers={"content-type": PROTOBUF})
        return _json(outcome)

    def _retrieve_futures(self, body: bytes) -> ResponseModel:
        asked = self._parse(futures.RetrieveFuturesBody, body)
        asked.to_retrieved()
        order = self.order.get(str(asked.to_sampler_id()), [])
        completions = [
            answers.FutureFailed(request_id=one)
            if isinstance(self.done[one], TensafeError)
            else answers.FutureFinished(request_id=one, response_payload_uncompressed_size=10)
            for one in order[asked.prev_cursor :]
        ]
        return answers.RetrieveFuturesResponse(completions=completions, cursor=len(order))


def _sampled(request: Any) -> SampleResult:
    """`num_samples` continuations of max_tokens ids that count upwards."""
    length = request.params.max_tokens
    prompt = np.asarray(request.prompt, np.float32)
    prompt_logprobs = -prompt
    prompt_logprobs[0] = np.nan
    sequences = [
        Sequence(
            np.arange(i, i + length, dtype=np.int32),
            -np.arange(length, dtype=np.float32),
            "stop" if i else "length",
        )
        for i in range(request.num_samples)
    ]
    topk = None
    if request.topk_prompt_logprobs:
        ids = np.tile(np.arange(1, request.topk_prompt_logprobs + 1, dtype=np.int32), (len(prompt), 1))
        ids[0] = -1
        topk = TopkLogprobs(ids, np.where(ids < 0, np.nan, -ids.astype(np.float32)))
    return SampleResult(
        tuple(sequences),
        prompt_logprobs=prompt_logprobs if request.prompt_logprobs else None,
        topk_prompt_logprobs=topk,
        prompt_cache_hit_tokens=2,
    )


def _json(answer: ResponseModel) -> httpx.Response:
    return httpx.Response(200, content=to_json(answer), headers={"content-type": "application/json"})
