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
from tensafe.api.openai import routes as openai_routes
from tensafe.api.openai.samplers import ModelSamplers
from tensafe.api.request_id import RequestIdMiddleware
from tensafe.api.tinker import routes as tinker_routes
from tensafe.metrics.requests import RequestMeter
from tensafe.services import Services


def create_app(
    services: Services,
    limits: EdgeLimits | None = None,
    meter: RequestMeter | None = None,
    base_url: str | None = None,
) -> FastAPI:
    """A FastAPI application that serves the Tinker, the native and the OpenAI face.

    `base_url` is where clients reach it, where that is not the address at which requests arrive.
    """
    context = Context(services, limits or EdgeLimits(), base_url)

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
    training = (training_clients, deals, futures, artifacts)
    native = [route for module in (*training, privacy) for route in module.router.routes]
    # As they are: `include_router` builds each of them once more, which a cold start waits for.
    app.router.routes += [*tinker_routes, *native, *openai_routes, *health.router.routes]
    openapi.install(app)
    app.add_middleware(RequestIdMiddleware, meter=meter)
    return app
