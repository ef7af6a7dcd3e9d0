"""The application: every router over one set of services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import tensafe
from tensafe.api import errors, openapi
from tensafe.api.context import Context, EdgeLimits
from tensafe.api.native import artifacts, deals, futures, health, privacy, training_clients
from tensafe.api.openai import router as openai_router
from tensafe.api.openai.samplers import ModelSamplers
from tensafe.api.request_id import RequestIdMiddleware
from tensafe.api.tinker import router as tinker_router
from tensafe.metrics.requests import RequestMeter
from tensafe.services import Services


def create_app(
    services: Services, limits: EdgeLimits | None = None, meter: RequestMeter | None = None
) -> FastAPI:
    """A FastAPI application that serves the Tinker, the native and the OpenAI face."""
    context = Context(services, limits or EdgeLimits())

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
    app.state.model_samplers = ModelSamplers(services)
    errors.install(app)
    # The busiest first: a request is matched against one route after the other.
    training = (training_clients.router, deals.router, futures.router, artifacts.router)
    for router in (tinker_router, *training, privacy.router, openai_router, health.router):
        app.include_router(router)
    openapi.install(app)
    app.add_middleware(RequestIdMiddleware, meter=meter)
    return app
