"""`/v1/models`: what can be named as `model`: base models, and the caller's saved sampler weights."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from tensafe.api.context import Edge, SampleCaller
from tensafe.api.openapi import ERRORS
from tensafe.contracts.errors import InvalidRequest, NotFound
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.wire.paths import CheckpointPath

router = APIRouter(prefix="/v1/models", tags=["openai"], responses=ERRORS)


class Model(BaseModel):
    """A model that completions can be asked of; `created` is Unix time in seconds, 0 for a base model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Model:
        return cls(id=checkpoint.path, created=checkpoint.created_ms // 1000, owned_by=checkpoint.tenant)


class ModelList(BaseModel):
    """Base models first, then sampler weights, newest first."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("")
async def list_models(principal: SampleCaller, context: Edge) -> ModelList:
    """Every base model, and the newest thousand of the caller's sampler weights."""
    services = context.services
    base = [Model(id=name, owned_by="tensafe") for name in sorted(services.models)]
    saved = await context.call(services.checkpoints.of_tenant, principal.tenant)
    return ModelList(data=[*base, *(Model.of(one) for one in saved if one.kind is CheckpointKind.SAMPLER)])


@router.get("/{model_id:path}")
async def show_model(model_id: str, principal: SampleCaller, context: Edge) -> Model:
    """One of them."""
    services = context.services
    if model_id in services.models:
        return Model(id=model_id, owned_by="tensafe")
    try:
        path = CheckpointPath.parse(model_id, "model")
        checkpoint = await context.call(
            services.checkpoints.find, str(path.run), CheckpointKind(path.kind), path.name, principal.tenant
        )
    except (InvalidRequest, NotFound):
        raise NotFound("no such model; GET /v1/models lists them", field="model") from None
    if checkpoint.kind is not CheckpointKind.SAMPLER:
        raise NotFound("no such model; GET /v1/models lists them", field="model")
    return Model.of(checkpoint)
