"""`/healthz`, `/readyz`, `/version`: no credential needed, nothing of any tenant told."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

import tensafe
from tensafe.api.context import Edge
from tensafe.api.direct import DirectRoute
from tensafe.api.readiness import OK

router = APIRouter(tags=["health"], route_class=DirectRoute)
_STRINGS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {
            "application/json": {"schema": {"type": "object", "additionalProperties": {"type": "string"}}}
        }
    }
}


@router.get("/healthz", responses=_STRINGS)
async def healthz() -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", response_model=None, responses={503: {}})
async def readyz(context: Edge) -> Response:
    """Every dependency answers and each base model has a live trainer and sampler; else 503."""
    checks = await context.call(context.readiness.checks)
    ready = all(state == OK for state in checks.values())
    return JSONResponse({"ready": ready, "checks": checks}, 200 if ready else 503)


@router.get("/version", responses=_STRINGS)
async def version() -> Response:
    """The release that answers."""
    return JSONResponse({"version": tensafe.__version__})
