"""`/v1/models`: what can be named as `model`: base models, and the caller's sampler weights, private too."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from tensafe.api.context import Edge, SampleCaller
from tensafe.api.openapi import ERRORS
from tensafe.api.sampling import sampler_weights
from tensafe.contracts.errors import InvalidRequest, NotFound
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.placements import Placement
from tensafe.wire.paths import CheckpointPath

router = APIRouter(prefix="/v1/models", tags=["openai"], responses=ERRORS)


class Model(BaseModel):
    """A model that completions can be asked of; `created` is Unix time in seconds, 0 for a base model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str

    @classmethod
    def of(cls, weights: Checkpoint | Placement) -> Model:
        return cls(id=weights.path, created=weights.created_ms // 1000, owned_by=weights.tenant)


class ModelList(BaseModel):
    """Base models first, then sampler weights, newest first."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("")
async def list_models(principal: SampleCaller, context: Edge) -> ModelList:
    """Every base model, the newest thousand of the caller's sampler weights, and private adapters."""
    services = context.services
    base = [Model(id=name, owned_by="tensafe") for name in sorted(services.models)]
    saved = await context.call(services.checkpoints.of_tenant, principal.tenant)
    here = [one for one in saved if one.kind is CheckpointKind.SAMPLER]
    held = await context.call(services.placements.of_tenant, principal.tenant)
    found: list[Checkpoint | Placement] = [*here, *held]
    found.sort(key=lambda one: one.created_ms, reverse=True)
    return ModelList(data=[*base, *(Model.of(one) for one in found)])


@router.get("/{model_id:path}")
async def show_model(model_id: str, principal: SampleCaller, context: Edge) -> Model:
    """One of them."""
    services = context.services
    if model_id in services.models:
        return Model(id=model_id, owned_by="tensafe")
    try:
        ref = CheckpointPath.parse(model_id, "model").to_ref()
        return Model.of(await context.call(sampler_weights, services, principal.tenant, ref))
    except (InvalidRequest, NotFound):
        raise NotFound("no such model; GET /v1/models lists them", field="model") from None
