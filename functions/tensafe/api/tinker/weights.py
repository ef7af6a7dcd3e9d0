"""Saving the weights of a run and loading them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from tensafe.api import runs
from tensafe.api.bodies import parse
from tensafe.api.context import Context, Edge, TrainCaller
from tensafe.api.direct import DirectRoute
from tensafe.api.metadata import check_metadata
from tensafe.api.openapi import ERRORS, documented
from tensafe.api.tinker.bodies import answer
from tensafe.api.tinker.prefix import PREFIX, TAGS
from tensafe.api.tinker.refusals import or_tombstone
from tensafe.api.tinker.submitting import submit
from tensafe.auth.principal import Principal
from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.payloads import LoadPayload, SavePayload
from tensafe.contracts.training import LoraSpec
from tensafe.operations.checkpoints import Checkpoint
from tensafe.operations.records import OpKind, StreamRecord
from tensafe.privacy.refusals import NOTHING_CHARGED
from tensafe.wire.tinker_requests import weights as bodies
from tensafe.wire.tinker_responses.futures import FutureResponse

router = APIRouter(prefix=PREFIX, tags=TAGS, responses=ERRORS, route_class=DirectRoute)
SaveBody = bodies.SaveWeightsBody | bodies.SaveWeightsForSamplerBody | bodies.SaveWeightsExternalBody


@router.post("/save_weights", openapi_extra=documented(bodies.SaveWeightsBody))
async def save_weights(request: Request, principal: TrainCaller, context: Edge) -> Response:
    """Weights and optimizer state, to resume from."""
    return await _save(request, principal, context, bodies.SaveWeightsBody, OpKind.SAVE)


@router.post("/save_weights_for_sampler", openapi_extra=documented(bodies.SaveWeightsForSamplerBody))
async def save_weights_for_sampler(request: Request, principal: TrainCaller, context: Edge) -> Response:
    """Weights to sample from, named or straight into a sampling session."""
    return await _save(request, principal, context, bodies.SaveWeightsForSamplerBody, OpKind.SAVE_SAMPLER)


@router.post("/save_weights_external", openapi_extra=documented(bodies.SaveWeightsExternalBody))
async def save_weights_external(request: Request, principal: TrainCaller, context: Edge) -> Response:
    """A PEFT export, encrypted with age if recipients are given."""
    return await _save(request, principal, context, bodies.SaveWeightsExternalBody, OpKind.SAVE_EXTERNAL)


@router.post("/load_weights", openapi_extra=documented(bodies.LoadWeightsBody))
async def load_weights(request: Request, principal: TrainCaller, context: Edge) -> Response:
    """A run from a checkpoint, new (by session and model_seq_id) or existing (by model_id and seq_id)."""

    async def submit_load(raw: bytes) -> Response:
        body = parse(bodies.LoadWeightsBody, raw)
        asked = str((body.optimizer_config or {}).get("type"))
        with runs.telling_the_charge(asked, charge=NOTHING_CHARGED):
            load = body.to_load_weights()
        ref = load.path.to_ref()
        checkpoint = runs.loadable_checkpoint(context.services, principal.tenant, ref)
        if load.base_model is not None and load.base_model != checkpoint.base_model:
            raise InvalidRequest(
                f"this checkpoint belongs to base model {checkpoint.base_model}", field="base_model"
            )
        payload = runs.load_payload(
            checkpoint, ref, with_optimizer=load.with_optimizer, optimizer=load.optimizer_config
        )
        if load.creates_run:
            return await _create(context, principal, load, checkpoint, payload)
        stream = context.run_to_submit(principal, str(load.request_id.owner))
        return await submit(context, stream, load.request_id, OpKind.LOAD, _into(stream, payload))

    return await or_tombstone(context, principal, OpKind.LOAD, request, submit_load)


async def _create(
    context: Context,
    principal: Principal,
    load: bodies.LoadWeights,
    checkpoint: Checkpoint,
    payload: LoadPayload,
) -> Response:
    session = context.session(principal, load.request_id.owner.session_id)
    await context.call(
        runs.load_run,
        context.services,
        principal.tenant,
        str(load.request_id.owner),
        checkpoint,
        payload,
        user_metadata=dict(load.user_metadata or {}),
        session_id=session.session_id,
    )
    return answer(FutureResponse.of(load.request_id))


async def _save(
    request: Request, principal: Principal, context: Context, model: type[SaveBody], kind: OpKind
) -> Response:
    async def submit_save(raw: bytes) -> Response:
        body = parse(model, raw)
        payload = body.to_payload()
        check_metadata(dict(payload.user_metadata))
        address = body.to_request_id()
        stream = context.run_to_submit(principal, str(address.owner))
        return await submit(context, stream, address, kind, payload, identity=_repeated(payload))

    return await or_tombstone(context, principal, kind, request, submit_save)


def _repeated(payload: SavePayload) -> SavePayload:
    """What a retry repeats: the SDK numbers the sampling session anew each time that it sends the save.

    The session of the try that came first is the answer, and its number is in the weights' name.
    """
    if payload.sampling_session_id is None:
        return payload
    return payload.model_copy(update={"name": "", "sampling_session_id": ""})


def _into(stream: StreamRecord, payload: LoadPayload) -> LoadPayload:
    """A load into an existing run keeps the run's optimizer and needs its adapter's shape."""
    own = LoraSpec.model_validate(stream.spec["lora"])
    if own.model_copy(update={"seed": payload.lora.seed}) != payload.lora:
        raise InvalidRequest("the checkpoint's adapter has another shape than this run's", field="path")
    return LoadPayload.model_validate({**payload.model_dump(), "optimizer": stream.spec["optimizer"]})
