"""Sampling sessions and sampling requests."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from tensafe.api import admission, runs, sampling
from tensafe.api.bodies import DATA_MAX_BYTES, parse, read
from tensafe.api.context import Context, Edge, SampleCaller
from tensafe.api.direct import DirectRoute
from tensafe.api.execution_policy import asked_policy
from tensafe.api.openapi import ERRORS, documented
from tensafe.api.tinker.bodies import answer
from tensafe.api.tinker.prefix import PREFIX, TAGS
from tensafe.auth.principal import Principal
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.payloads import SamplePayload
from tensafe.operations.records import OpKind
from tensafe.operations.submissions import Submission
from tensafe.wire.ids import SamplerId
from tensafe.wire.tinker_requests import sampling as bodies
from tensafe.wire.tinker_responses import sessions as responses
from tensafe.wire.tinker_responses.futures import FutureResponse

router = APIRouter(prefix=PREFIX, tags=TAGS, responses=ERRORS, route_class=DirectRoute)


@router.post("/create_sampling_session", openapi_extra=documented(bodies.CreateSamplingSessionBody))
async def create_sampling_session(request: Request, principal: SampleCaller, context: Edge) -> Response:
    """A session that samples from saved weights, or from a base model as it is."""
    body = await read(bodies.CreateSamplingSessionBody, request, context)
    session = context.session(principal, body.session_id)
    path = body.to_path()
    record = await context.call(
        sampling.open_sampler,
        context.services,
        principal.tenant,
        str(body.to_sampler_id()),
        base_model=body.base_model,
        weights=path.to_ref() if path else None,
        session_id=session.session_id,
    )
    return answer(responses.CreateSamplingSessionResponse(sampling_session_id=record.stream_id))


@router.post("/join_sampling_session", openapi_extra=documented(bodies.JoinSamplingSessionBody))
async def join_sampling_session(request: Request, principal: SampleCaller, context: Edge) -> Response:
    """The number of a copy of a sampling client, so that copies never share sequence numbers."""
    body = await read(bodies.JoinSamplingSessionBody, request, context)
    sampler_id = str(SamplerId.parse(body.sampling_session_id))
    stream = context.sampler(principal, sampler_id)
    counter = await context.call(sampling.next_clone, context.services, stream)
    return answer(responses.JoinSamplingSessionResponse(client_counter=counter))


@router.get("/samplers/{sampler_id}")
async def get_sampler(sampler_id: str, principal: SampleCaller, context: Edge) -> Response:
    """What a sampling session samples from."""
    stream = context.sampler(principal, sampler_id)
    path = stream.spec.get("model_path")
    return answer(
        responses.SamplerResponse(
            sampler_id=stream.stream_id,
            base_model=stream.base_model,
            model_path=str(path) if path else None,
        )
    )


@router.post("/asample", openapi_extra=documented(bodies.SampleBody))
async def asample(request: Request, principal: SampleCaller, context: Edge) -> Response:
    """Draw tokens. Repeating (sampling_session_id, seq_id) is the same request.

    The header X-TenSafe-Execution-Policy strengthens the policy of the adapter. The SDK sends it with
    `ServiceClient(default_headers_overrides={...})`.
    """
    raw = await context.body(request, max_bytes=DATA_MAX_BYTES)
    asked = asked_policy(request, None)
    return answer(await context.call(_submit, context, principal, raw, asked))


def _submit(
    context: Context, principal: Principal, raw: bytes, asked: ExecutionPolicy | None
) -> FutureResponse:
    """For a thread: a prompt may have a million tokens."""
    sample = parse(bodies.SampleBody, raw, max_bytes=DATA_MAX_BYTES).to_sample()
    services = context.services
    stream = context.sampler_to_submit(principal, str(sample.request_id.owner))
    sampling.check_sample(sample.request, runs.served(services, stream))
    payload = SamplePayload(
        request=sample.request,
        prompt_logprobs_last_n=sample.prompt_logprobs_last_n,
        answer="protobuf",
        execution_policy=asked,
    )
    submission = Submission(sample.request_id.seq, OpKind.SAMPLE, payload.model_dump_json().encode())
    admission.submit(services, stream, submission)
    return FutureResponse.of(sample.request_id, num_samples=sample.request.num_samples)
