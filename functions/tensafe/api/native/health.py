"""`/healthz`, `/readyz`, `/version`: no credential needed, nothing of any tenant told."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

import tensafe
from tensafe.api.context import Context, Edge
from tensafe.storage.ports import Key, StorageError

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None, responses={503: {}})
async def readyz(context: Edge) -> Response:
    """Every dependency answers and each base model has a live trainer and sampler; else 503."""
    checks = await context.call(_checks, context)
    ready = all(state == "ok" for state in checks.values())
    return JSONResponse({"ready": ready, "checks": checks}, 200 if ready else 503)


@router.get("/version")
async def version() -> dict[str, str]:
    """The release that answers."""
    return {"version": tensafe.__version__}


def _checks(context: Context) -> dict[str, str]:
    ports = context.services.ports
    checks: dict[str, str] = {}
    try:
        ports.items.get(Key("health", "probe"))
        checks["items"] = "ok"
        ports.blobs.head("health/probe")
        checks["blobs"] = "ok"
        for spec in ports.queue_specs:
            ports.queues.depth(spec.name)
        checks["queues"] = "ok"
        alive = {(worker.role, worker.base_model) for worker in context.services.workers.list()}
    except StorageError as error:
        checks["storage"] = error.code
        return checks
    for model in context.services.models:
        for role in ("trainer", "sampler"):
            checks[f"{role}:{model}"] = "ok" if (role, model) in alive else "absent"
    return checks
