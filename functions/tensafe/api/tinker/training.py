"""Creating runs and training them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from tensafe.api import admission, runs
from tensafe.api.bodies import parse, read
from tensafe.api.context import Caller, Context, Edge, TrainCaller
from tensafe.api.direct import DirectRoute
from tensafe.api.openapi import ERRORS, documented
from tensafe.api.tinker.bodies import answer
from tensafe.api.tinker.prefix import PREFIX, TAGS
from tensafe.api.tinker.refusals import or_failed_future, or_tombstone, protobuf_address
from tensafe.api.tinker.submitting import submit
from tensafe.auth.principal import Principal
from tensafe.contracts.data_checks import check_request
from tensafe.contracts.errors import Unsupported
from tensafe.contracts.network import LOOPBACK
from tensafe.contracts.payloads import PROTOBUF
from tensafe.contracts.training import LoraSpec
from tensafe.operations.records import OpKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.wire.compression import decode_body
from tensafe.wire.forward_backward import ForwardBackwardSubmission, decode_request
from tensafe.wire.ids import RequestId
from tensafe.wire.tinker_requests import models
from tensafe.wire.tinker_responses.futures import FutureResponse
from tensafe.wire.tinker_responses.runs import GetInfoResponse, ModelData

router = APIRouter(prefix=PREFIX, tags=TAGS, responses=ERRORS, route_class=DirectRoute)


@router.post("/create_model", openapi_extra=documented(models.CreateModelBody))
async def create_model(request: Request, principal: TrainCaller, context: Edge) -> Response:
    """A run with a fresh adapter. The same (session, model_seq_id) is the same run."""
    body = await read(models.CreateModelBody, request, context)
    services = context.services
    context.session(principal, body.session_id)
    address = body.to_request_id()
    payload = body.to_payload(seed_if_absent=runs.seed_of(str(address.owner)))
    runs.check_rank(services, body.base_model, payload.lora.rank, field="lora_config.rank")
    await context.call(
        runs.create_run,
        services,
        principal.tenant,
        str(address.owner),
        body.base_model,
        payload,
        user_metadata=dict(body.user_metadata or {}),
        session_id=body.session_id,
    )
    return answer(FutureResponse.of(address))


@router.post("/get_info", openapi_extra=documented(models.GetInfoBody))
async def get_info(request: Request, principal: TrainCaller, context: Edge) -> Response:
    """What a run is; answered from the registry, never by a GPU task."""
    body = await read(models.GetInfoBody, request, context)
    stream = context.run(principal, str(body.to_run_id()))
    info = context.services.model(stream.base_model)
    lora = LoraSpec.model_validate(stream.spec["lora"])
    # A client on this machine can read the model's folder; another one looks the name up for itself.
    tokenizer = info.path if request.client and request.client.host in LOOPBACK else None
    return answer(
        GetInfoResponse.model_validate(
            {
                "model_data": ModelData(arch=info.arch, model_name=info.name, tokenizer_id=tokenizer),
                "model_id": stream.stream_id,
                "optimizer_config": stream.spec["optimizer"],
                "lora_rank": lora.rank,
                "model_name": info.name,
            }
        )
    )


@router.post(
    "/forward_backward",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "ForwardBackwardRequest (tinker_v0_38.proto), optionally zstd-compressed",
            "content": {PROTOBUF: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def forward_backward(request: Request, principal: TrainCaller, context: Edge) -> Response:
    """Forward, or forward and backward, over a chunk of data. A refused chunk's future has failed."""
    encoding = request.headers.get("content-encoding")
    raw = b""

    async def submit_data() -> Response:
        nonlocal raw
        raw = await context.body(request)
        _check_content_type(request)
        body, decoded, stream = await context.call(_decode, context, principal, raw, encoding)
        submission = Submission(decoded.seq_id, OpKind.FORWARD_BACKWARD, body, content_type=PROTOBUF)
        await context.call(admission.submit, context.services, stream, submission)
        return answer(FutureResponse.of(RequestId(decoded.run, decoded.seq_id)))

    return await or_failed_future(
        context,
        principal,
        OpKind.FORWARD_BACKWARD,
        submit_data,
        lambda error: protobuf_address(raw, encoding, error),
    )


@router.post("/optim_step", openapi_extra=documented(models.OptimStepBody))
async def optim_step(request: Request, principal: TrainCaller, context: Edge) -> Response:
    """One optimizer step."""

    async def submit_step(raw: bytes) -> Response:
        step = parse(models.OptimStepBody, raw).to_optim_step()
        stream = context.run_to_submit(principal, str(step.request_id.owner))
        with runs.telling_the_charge(runs.optimizer_family(stream)):
            step.check_family(runs.optimizer_family(stream))
        return await submit(context, stream, step.request_id, OpKind.OPTIM_STEP, step.params)

    return await or_tombstone(context, principal, OpKind.OPTIM_STEP, request, submit_step)


@router.post("/create_custom_loss", openapi_extra=documented(models.CreateCustomLossBody))
async def create_custom_loss(principal: Caller) -> Response:
    """Refused by name; the SDK computes custom losses itself when the client configuration says so."""
    raise Unsupported("custom losses run in the client: use forward_backward_custom", field="loss_fn")


def _decode(
    context: Context, principal: Principal, raw: bytes, encoding: str | None
) -> tuple[bytes, ForwardBackwardSubmission, StreamRecord]:
    """The body without its compression, what it says, and the run that it is for; everything checked."""
    limits = context.limits.wire
    body = decode_body(raw, encoding, max_bytes=limits.body_bytes)
    decoded = decode_request(body, limits)
    stream = context.run_to_submit(principal, str(decoded.run))
    check_request(decoded.request, runs.served(context.services, stream))
    return body, decoded, stream


def _check_content_type(request: Request) -> None:
    given = request.headers.get("content-type", PROTOBUF).partition(";")[0].strip().lower()
    if given != PROTOBUF:
        raise Unsupported(
            f"training data arrive as {PROTOBUF}, not as {given[:80]!r}; JSON is for "
            "/v1/training_clients/{id}/forward_backward",
            field="Content-Type",
        )
