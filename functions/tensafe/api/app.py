"""The application: every router over one set of services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import tensafe
from tensafe.api import errors, openapi
from tensafe.api.context import Context, EdgeLimits
from tensafe.api.faces import Faces
from tensafe.api.request_id import RequestIdMiddleware
from tensafe.auth.waits import Waits
from tensafe.metrics.requests import RequestMeter
from tensafe.services import Services


def create_app(
    services: Services,
    limits: EdgeLimits | None = None,
    meter: RequestMeter | None = None,
    base_url: str | None = None,
    *,
    at_once: bool = True,
    waits: Waits | None = None,
) -> FastAPI:
    """A FastAPI application that serves the Tinker, the native and the OpenAI face.

    `base_url` is where clients reach it, where that is not the address at which requests arrive. Without
    `at_once`, a module of routes is imported by the first request for one of them (`api/faces.py`). `waits`
    counts a tenant's requests that wait, where more than this process answers.
    """
    context = Context(services, limits or EdgeLimits(), base_url, waits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        context.waiter.start(asyncio.get_running_loop())
        yield

    app = FastAPI(
        title="TenSafe",
        version=tensafe.__version__,
        description="Private fine-tuning and inference for open-weight language models.",
        lifespan=lifespan,
        # The pages that FastAPI can serve load their scripts from elsewhere; the document itself stays.
        docs_url=None,
        redoc_url=None,
        # A redirect would answer before the credential is looked at.
        redirect_slashes=False,
    )
    app.state.context = context
    errors.install(app)
    faces = Faces()
    if at_once:
        faces.load()
    app.router.routes.append(faces)
    openapi.install(app, faces.load)
    app.add_middleware(RequestIdMiddleware, meter=meter)
    return app
