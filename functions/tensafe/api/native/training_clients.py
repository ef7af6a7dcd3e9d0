"""`/v1/training_clients`: create, list, look, erase, and the operations of a run."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Query, Request

from tensafe.api import admission, runs
from tensafe.api.bodies import DATA_MAX_BYTES, parse, read
from tensafe.api.context import Context, Edge, SampleCaller, TrainCaller
from tensafe.api.execution_policy import asked_policy
from tensafe.api.futures import Future
from tensafe.api.metadata import check_metadata
from tensafe.api.native import models
from tensafe.api.native.idempotency import IdempotencyKey
from tensafe.api.openapi import ERRORS, documented
from tensafe.api.sampling import sample_present_weights
from tensafe.auth.principal import AccessScope, Principal
from tensafe.contracts.data_checks import check_request
from tensafe.contracts.errors import Conflict, Forbidden, InvalidRequest
from tensafe.contracts.payloads import CheckpointRef, CreatePayload, SavePayload
from tensafe.contracts.training import LoraSpec, SgdParams, StepParams
from tensafe.operations.records import OpKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.wire.forward_backward_json import ForwardBackwardJson
from tensafe.wire.json_body import build
from tensafe.wire.paths import check_checkpoint_name, check_new_name

router = APIRouter(prefix="/v1/training_clients", tags=["training"], responses=ERRORS)


@router.post("", status_code=201, openapi_extra=documented(models.CreateTrainingClient))
async def create(
    request: Request, principal: TrainCaller, context: Edge, key: IdempotencyKey = None
) -> models.CreatedTrainingClient:
    """Create a run. Its `future` ends when a trainer has made the adapter."""
    body = await read(models.CreateTrainingClient, request, context)
    services = context.services
    runs.check_rank(services, body.base_model, body.lora.rank, field="lora.rank")
    run_id = f"{_session_of(principal, key)}:train:0"
    lora = body.lora.model_dump()
    if lora["seed"] is None:
        lora["seed"] = runs.seed_of(run_id)
    payload = CreatePayload(lora=build(LoraSpec, lora, field="lora"), optimizer=body.optimizer)
    operation = await context.call(
        runs.create_run,
        services,
        principal.tenant,
        run_id,
        body.base_model,
        payload,
        user_metadata=dict(body.user_metadata),
        idempotency_key=key,
    )
    stream = services.streams.get(run_id, principal.tenant)
    return models.CreatedTrainingClient(
        training_client=models.TrainingClient.of(stream),
        future=models.FutureState.of(Future(stream, operation)),
    )


@router.get("")
async def list_all(
    principal: TrainCaller,
    context: Edge,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> models.TrainingClientList:
    """The tenant's runs, newest first."""
    found = await context.call(context.services.streams.list_runs, principal.tenant, limit=limit)
    return models.TrainingClientList(training_clients=[models.TrainingClient.of(run) for run in found])


@router.get("/{client_id}")
async def show(client_id: str, principal: TrainCaller, context: Edge) -> models.TrainingClient:
    """One run."""
    return models.TrainingClient.of(context.run(principal, client_id))


@router.delete("/{client_id}")
async def erase(client_id: str, principal: TrainCaller, context: Edge) -> models.Erased:
    """Crypto-shred the run: its data key is deleted before anything else, and with it everything."""
    context.run(principal, client_id)
    await context.call(context.services.streams.erase, client_id, principal.tenant)
    return models.Erased(id=client_id)


@router.get("/{client_id}/artifacts")
async def artifacts(client_id: str, principal: TrainCaller, context: Edge) -> models.ArtifactList:
    """What the run has saved."""
    stream = context.run(principal, client_id)
    found = await context.call(context.services.checkpoints.of_run, stream.stream_id)
    return models.ArtifactList(artifacts=[models.Artifact.of(checkpoint) for checkpoint in found])


@router.post("/{client_id}/forward_backward", status_code=202, openapi_extra=documented(ForwardBackwardJson))
async def forward_backward(
    client_id: str,
    request: Request,
    principal: TrainCaller,
    context: Edge,
    key: IdempotencyKey = None,
) -> models.FutureState:
    """Loss, logprobs and (unless `forward_only`) gradients, added to the run's accumulator."""
    stream = _numbered_here(context, principal, client_id)
    raw = await context.body(request, max_bytes=DATA_MAX_BYTES)
    info = runs.served(context.services, stream)

    def checked() -> bytes:
        body = parse(ForwardBackwardJson, raw, max_bytes=DATA_MAX_BYTES)
        with _native_field_names():
            check_request(body.to_forward_backward(context.limits.wire), info)
        return body.model_dump_json().encode()

    return await _append(context, stream, OpKind.FORWARD_BACKWARD, await context.call(checked), key)


@router.post("/{client_id}/optim_step", status_code=202, openapi_extra=documented(models.OptimStep))
async def optim_step(
    client_id: str, request: Request, principal: TrainCaller, context: Edge, key: IdempotencyKey = None
) -> models.FutureState:
    """One optimizer step on what has accumulated."""
    stream = _numbered_here(context, principal, client_id)
    with runs.telling_the_charge(runs.optimizer_family(stream)):
        params = await _step_params(request, context, runs.optimizer_family(stream))
    return await _append(context, stream, OpKind.OPTIM_STEP, params.model_dump_json().encode(), key)


@router.post("/{client_id}/save_state", status_code=202, openapi_extra=documented(models.SaveState))
async def save_state(
    client_id: str,
    request: Request,
    principal: TrainCaller,
    context: Edge,
    key: IdempotencyKey = None,
) -> models.FutureState:
    """Save weights and optimizer state as a sealed artifact."""
    stream = _numbered_here(context, principal, client_id)
    body = await read(models.SaveState, request, context)
    check_new_name(body.name, field="name")
    check_metadata(dict(body.user_metadata))
    payload = SavePayload(**body.model_dump())
    return await _append(context, stream, OpKind.SAVE, payload.model_dump_json().encode(), key)


@router.post("/{client_id}/load_state", status_code=201, openapi_extra=documented(models.LoadState))
async def load_state(
    client_id: str,
    request: Request,
    principal: TrainCaller,
    context: Edge,
    key: IdempotencyKey = None,
) -> models.CreatedTrainingClient:
    """A new run that goes on from a checkpoint of this one."""
    services = context.services
    stream = context.run(principal, client_id)
    body = await read(models.LoadState, request, context)
    name = check_checkpoint_name(body.name, field="name")
    ref = CheckpointRef(run_id=stream.stream_id, kind="weights", name=name)
    checkpoint = runs.loadable_checkpoint(services, principal.tenant, ref)
    payload = runs.load_payload(checkpoint, ref, with_optimizer=body.with_optimizer, optimizer=None)
    run_id = f"{_session_of(principal, key)}:train:0"
    operation = await context.call(
        runs.load_run,
        services,
        principal.tenant,
        run_id,
        checkpoint,
        payload,
        idempotency_key=key,
    )
    created = services.streams.get(run_id, principal.tenant)
    return models.CreatedTrainingClient(
        training_client=models.TrainingClient.of(created),
        future=models.FutureState.of(Future(created, operation)),
    )


@router.post("/{client_id}/sample", status_code=202, openapi_extra=documented(models.Sample))
async def sample(
    client_id: str,
    request: Request,
    principal: SampleCaller,
    context: Edge,
    key: IdempotencyKey = None,
) -> models.FutureState:
    """Sample from the run's weights as they are after every operation submitted so far.

    They are saved for it, so the key needs the scope `train` as well as `sample`.
    """
    if not principal.scopes & {AccessScope.TRAIN, AccessScope.ADMIN}:
        raise Forbidden(
            "this saves the run's weights first, which needs the scope 'train' too; with 'sample' alone, "
            "sample from saved weights (/v1/sample, /api/v1/create_sampling_session)"
        )
    stream = _numbered_here(context, principal, client_id)
    raw = await context.body(request, max_bytes=DATA_MAX_BYTES)

    def submit() -> Future:
        body = parse(models.Sample, raw, max_bytes=DATA_MAX_BYTES)
        policy = asked_policy(request, body.execution_policy)
        return sample_present_weights(context.services, stream, body.to_request(), key, policy)

    return models.FutureState.of(await context.call(submit))


def _numbered_here(context: Context, principal: Principal, client_id: str) -> StreamRecord:
    """The run, if its operations take the numbers that this face gives them.

    The SDK counts those of its runs itself: one that it does not know of would take its next one's place.
    """
    stream = context.run_to_submit(principal, client_id)
    if stream.session_id is not None:
        raise Conflict(
            "this run belongs to a session of the SDK, which numbers its operations; go on with it there, or "
            "load a checkpoint of it (load_state) into a run of this face",
            code="sdk_session_run",
        )
    return stream


async def _step_params(request: Request, context: Context, family: str | None) -> StepParams:
    """The body as the parameters of the run's optimizer. Raises InvalidRequest for those of another one."""
    if family == "tensafe_dp_sgd":
        return await read(SgdParams, request, context)
    body = await read(models.AdamStep, request, context)
    if body.type not in (None, family):
        raise InvalidRequest(
            f"this run's optimizer is {family}, fixed when it was created; name that one, or create "
            "another run",
            field="type",
        )
    return body.to_params()


async def _append(
    context: Context, stream: StreamRecord, kind: OpKind, payload: bytes, key: str | None
) -> models.FutureState:
    runs.served(context.services, stream)
    submission = Submission(0, kind, payload, idempotency_key=key)
    operation = await context.call(admission.append, context.services, stream, submission)
    return models.FutureState.of(Future(stream, operation))


@contextmanager
def _native_field_names() -> Iterator[None]:
    """The checks call a datum's tokens as the Tinker protocol does."""
    try:
        yield
    except InvalidRequest as error:
        error.field = error.field and error.field.replace(".model_input", ".tokens")
        raise


def _session_of(principal: Principal, key: str | None) -> str:
    """A session for one run: from the idempotency key if there is one, so that a retry finds its run."""
    if key is None:
        return f"n-{secrets.token_hex(16)}"
    return f"n-{_digest(principal.tenant, key)}"


def _digest(tenant: str, key: str) -> str:
    return hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()[:32]
