"""`/v1/artifacts`: saved artifacts, decrypted for their owner."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from tensafe.api import answers
from tensafe.api.context import Context, Edge, TrainCaller
from tensafe.api.native.models import Artifact
from tensafe.api.openapi import ERRORS
from tensafe.auth.principal import Principal
from tensafe.contracts.errors import InvalidRequest, NotFound
from tensafe.operations.checkpoints import Checkpoint, statement_of
from tensafe.storage.ports import OCTETS

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"], responses=ERRORS)


@router.get("/{artifact_id}")
async def show(artifact_id: str, principal: TrainCaller, context: Edge) -> Artifact:
    """What an artifact is."""
    return Artifact.of(_artifact(context, principal, artifact_id))


@router.get(
    "/{artifact_id}/content",
    response_class=Response,
    responses={200: {"content": {OCTETS: {}}}, **answers.ELSEWHERE},
)
async def content(artifact_id: str, principal: TrainCaller, context: Edge) -> Response:
    """The artifact in clear: a training state (safetensors) or a tar of PEFT files."""
    services = context.services
    checkpoint = _artifact(context, principal, artifact_id)
    stream = services.streams.get(checkpoint.run_id, principal.tenant)
    data = await context.call(services.checkpoints.read, stream, checkpoint)
    return await answers.send(context, data, OCTETS)


@router.get("/{artifact_id}/privacy_statement")
async def privacy_statement(artifact_id: str, principal: TrainCaller, context: Edge) -> dict[str, Any]:
    """What the artifact's privacy is, signed when it was saved (docs/privacy.md, "Statements")."""
    return statement_of(_artifact(context, principal, artifact_id))


def _artifact(context: Context, principal: Principal, artifact_id: str) -> Checkpoint:
    try:
        return context.services.checkpoints.by_artifact(artifact_id, principal.tenant)
    except (InvalidRequest, NotFound):  # in the same words, whatever there is or is not
        raise NotFound("no such artifact") from None
