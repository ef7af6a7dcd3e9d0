"""The REST resources: training runs, their checkpoints, exports."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from tensafe.api import answers, signed_urls
from tensafe.api.bodies import read
from tensafe.api.context import Context, Edge, TrainCaller
from tensafe.api.openapi import ERRORS, documented
from tensafe.api.tinker.bodies import Access, answer
from tensafe.api.tinker.prefix import PREFIX, TAGS
from tensafe.auth.principal import Principal
from tensafe.contracts.errors import NotFound, Unsupported
from tensafe.contracts.training import LoraSpec
from tensafe.operations import checkpoints
from tensafe.operations.checkpoints import CheckpointKind
from tensafe.operations.records import StreamRecord, StreamState
from tensafe.services import Services
from tensafe.storage.ports import OCTETS
from tensafe.wire.paths import CheckpointPath
from tensafe.wire.tinker_requests import weights as bodies
from tensafe.wire.tinker_responses import runs as responses

router = APIRouter(prefix=PREFIX, tags=TAGS, responses=ERRORS)

Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=100_000)]


@router.get("/training_runs")
async def list_runs(
    principal: TrainCaller,
    context: Edge,
    limit: Limit = 20,
    offset: Offset = 0,
    project_id: Annotated[str | None, Query(max_length=256)] = None,
    access_scope: Access = "owned",
) -> Response:
    """The tenant's runs, newest first; those of one project, if it is named."""
    return answer(await context.call(_page, context.services, principal, limit, offset, project_id))


@router.get("/training_runs/{run_id}")
async def get_run(
    run_id: str, principal: TrainCaller, context: Edge, access_scope: Access = "owned"
) -> Response:
    """One run."""
    stream = context.run(principal, run_id)
    return answer(await context.call(_run, context.services, stream))


@router.get("/training_runs/{run_id}/checkpoints")
async def list_of_run(run_id: str, principal: TrainCaller, context: Edge) -> Response:
    """A run's checkpoints."""
    stream = context.run(principal, run_id)
    found = await context.call(context.services.checkpoints.of_run, stream.stream_id)
    return answer(responses.CheckpointsListResponse(checkpoints=[_checkpoint(c) for c in found]))


@router.get("/checkpoints")
async def list_of_tenant(
    principal: TrainCaller, context: Edge, limit: Limit = 100, offset: Offset = 0
) -> Response:
    """All of the tenant's checkpoints, newest first."""
    found = await context.call(context.services.checkpoints.of_tenant, principal.tenant, limit=10_000)
    page = [_checkpoint(checkpoint) for checkpoint in found[offset : offset + limit]]
    cursor = responses.Cursor(offset=offset, limit=limit, total_count=len(found))
    return answer(responses.CheckpointsListResponse(checkpoints=page, cursor=cursor))


# A checkpoint id holds a slash (`weights/final`), so the routes that end in a word come first.


@router.get("/training_runs/{run_id}/checkpoints/{kind}/{name}/external_weights_urls")
async def external_weights_urls(
    run_id: str, kind: str, name: str, request: Request, principal: TrainCaller, context: Edge
) -> Response:
    """Signed URLs of an export's files; each returns its file to whoever holds it, for an hour."""
    checkpoint = _find(context, principal, run_id, f"{kind}/{name}")
    if checkpoint.kind is not CheckpointKind.EXTERNAL:
        raise NotFound("no such external weights")
    files = await context.call(signed_urls.file_names, context.services, checkpoint)
    expires_s = int(time.time()) + signed_urls.LIFETIME_S
    base_url = context.base_url or str(request.base_url)
    urls = {file: signed_urls.make(context.services, base_url, checkpoint, file, expires_s) for file in files}
    expires = datetime.fromtimestamp(expires_s, UTC)
    return answer(responses.ExternalWeightsUrlsResponse(urls=urls, expires=expires))


@router.post("/training_runs/{run_id}/checkpoints/{kind}/{name}/publish")
@router.delete("/training_runs/{run_id}/checkpoints/{kind}/{name}/publish")
async def publish(run_id: str, kind: str, name: str, principal: TrainCaller, context: Edge) -> Response:
    """Refused: a checkpoint of this service is never public."""
    _find(context, principal, run_id, f"{kind}/{name}")
    raise Unsupported("checkpoints are never public here; export and share one yourself", field="publish")


@router.put(
    "/training_runs/{run_id}/checkpoints/{kind}/{name}/ttl",
    status_code=204,
    openapi_extra=documented(bodies.CheckpointTtlBody),
)
async def set_ttl(
    run_id: str, kind: str, name: str, request: Request, principal: TrainCaller, context: Edge
) -> Response:
    """Expire a checkpoint some time from now, or never."""
    body = await read(bodies.CheckpointTtlBody, request, context)
    checkpoint = _find(context, principal, run_id, f"{kind}/{name}")
    await context.call(context.services.checkpoints.set_ttl, checkpoint, body.ttl_seconds)
    return Response(status_code=204)


@router.delete("/training_runs/{run_id}/checkpoints/{kind}/{name}", status_code=204)
async def delete(run_id: str, kind: str, name: str, principal: TrainCaller, context: Edge) -> Response:
    """Delete a checkpoint: its key first, then its ciphertext."""
    checkpoint = _find(context, principal, run_id, f"{kind}/{name}")
    await context.call(context.services.checkpoints.delete, checkpoint)
    return Response(status_code=204)


@router.post("/weights_info", openapi_extra=documented(bodies.WeightsInfoBody))
async def weights_info(request: Request, principal: TrainCaller, context: Edge) -> Response:
    """What one must know to load a checkpoint."""
    body = await read(bodies.WeightsInfoBody, request, context)
    path = body.to_path()
    checkpoint = _find(context, principal, str(path.run), path.checkpoint_id)
    lora = LoraSpec.model_validate(checkpoint.details["lora"])
    return answer(
        responses.WeightsInfoResponse.model_validate(
            {
                "base_model": checkpoint.base_model,
                "optimizer_config": checkpoint.details.get("optimizer") or {"type": "adamw"},
                "lora_rank": lora.rank,
                "train_unembed": lora.train_unembed,
                "train_mlp": lora.train_mlp,
                "train_attn": lora.train_attn,
            }
        )
    )


@router.post("/copy_weights", openapi_extra=documented(bodies.CopyWeightsBody))
async def copy_weights(principal: TrainCaller) -> Response:
    """Refused: a checkpoint is sealed under its run's key and stays with it."""
    raise Unsupported("checkpoints are not copied between runs; load one into a new run", field="path")


@router.get(
    "/external_files/{artifact_id}/{file}",
    response_class=Response,
    responses={200: {"content": {OCTETS: {}}}, **answers.ELSEWHERE},
)
async def external_file(
    artifact_id: str,
    file: str,
    context: Edge,
    tenant: str,
    expires: int,
    signature: str,
) -> Response:
    """A file of an export, for the holder of a signed URL; no other credential."""
    data = await context.call(
        signed_urls.open_file, context.services, tenant, artifact_id, file, expires, signature
    )
    return await answers.send(context, data, OCTETS)


def _find(context: Context, principal: Principal, run_id: str, checkpoint_id: str) -> checkpoints.Checkpoint:
    path = CheckpointPath.of(run_id, checkpoint_id)
    return context.services.checkpoints.find(
        str(path.run), CheckpointKind(path.kind), path.name, principal.tenant
    )


def _page(
    services: Services, principal: Principal, limit: int, offset: int, project_id: str | None
) -> responses.TrainingRunsResponse:
    found = services.streams.list_runs(principal.tenant, limit=10_000)
    if project_id is not None:
        sessions = {run.session_id for run in found if run.session_id is not None}
        inside = {
            session_id
            for session_id in sessions
            if services.sessions.get(session_id, principal.tenant).body.get("project_id") == project_id
        }
        found = [run for run in found if run.session_id in inside]
    page = [_run(services, record) for record in found[offset : offset + limit]]
    cursor = responses.Cursor(offset=offset, limit=limit, total_count=len(found))
    return responses.TrainingRunsResponse(training_runs=page, cursor=cursor)


def _run(services: Services, stream: StreamRecord) -> responses.TrainingRun:
    newest = services.outcomes.operations(stream.stream_id, limit=1, descending=True)
    saved = services.checkpoints.of_run(stream.stream_id)
    training = [c for c in saved if c.kind is CheckpointKind.TRAINING]
    sampler = [c for c in saved if c.kind is CheckpointKind.SAMPLER]
    lora, metadata = stream.spec.get("lora"), stream.spec.get("user_metadata")
    return responses.TrainingRun.model_validate(
        {
            "training_run_id": stream.stream_id,
            "base_model": stream.base_model,
            "model_owner": stream.tenant,
            "corrupted": stream.state is StreamState.BLOCKED,
            "lora_rank": lora.get("rank") if isinstance(lora, dict) else None,
            "last_request_time": _time(newest[0].created_ms if newest else stream.created_ms),
            "last_checkpoint": _checkpoint(training[-1]) if training else None,
            "last_sampler_checkpoint": _checkpoint(sampler[-1]) if sampler else None,
            "user_metadata": metadata or None,
        }
    )


def _checkpoint(checkpoint: checkpoints.Checkpoint) -> responses.Checkpoint:
    path = CheckpointPath.of(checkpoint.run_id, f"{checkpoint.kind.value}/{checkpoint.name}")
    return responses.Checkpoint(
        checkpoint_id=path.checkpoint_id,
        checkpoint_type=path.checkpoint_type,
        time=_time(checkpoint.created_ms),
        tinker_path=checkpoint.path,
        size_bytes=checkpoint.ref.size_bytes,
        user_metadata=dict(checkpoint.user_metadata) or None,
        expires_at=_time(checkpoint.expires_ms) if checkpoint.expires_ms is not None else None,
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
