"""`/healthz`, `/readyz`, `/version`: no credential needed, nothing of any tenant told."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

import tensafe
from tensafe.api.context import Edge
from tensafe.api.readiness import OK

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None, responses={503: {}})
async def readyz(context: Edge) -> Response:
    """Every dependency answers and each base model has a live trainer and sampler; else 503."""
    checks = await context.call(context.readiness.checks)
    ready = all(state == OK for state in checks.values())
    return JSONResponse({"ready": ready, "checks": checks}, 200 if ready else 503)


@router.get("/version")
async def version() -> dict[str, str]:
    """The release that answers."""
    return {"version": tensafe.__version__}
