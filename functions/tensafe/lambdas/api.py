"""The HTTPS edge behind API Gateway (HTTP API, payload format 2.0): Mangum over the same application."""

from __future__ import annotations

import logging
from typing import Any, Final, cast

from mangum import Mangum
from starlette.requests import Request
from starlette.responses import Response

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tensafe.api.errors import shaped
from tensafe.auth.waits import SharedWaits
from tensafe.cloud.composition import cloud_services
from tensafe.cloud.settings import WAITS_PER_TENANT, CloudSettings
from tensafe.lambdas.entry import Event, Handler, entry, start
from tensafe.lambdas.subsegments import xray_tracer
from tensafe.lambdas.xray import traceparent
from tensafe.metrics.requests import ServerErrors
from tensafe.services import Services

log = logging.getLogger(__name__)

LIMITS: Final = EdgeLimits(body_bytes=4_400_000, answer_bytes=4_000_000)
"""Lambda takes and gives 6 MB of JSON, in which a binary body is base64: four bytes for three."""


def serving(
    services: Services, base_url: str | None = None, waits_per_tenant: int = WAITS_PER_TENANT
) -> Handler:
    """One request per event; `base_url` is where clients reach the API, whatever the event's host says.

    So many requests of a tenant wait for results at once, in all processes together.

    Nothing is waited for at start-up, so the application needs no lifespan.
    """
    logging.getLogger("mangum").setLevel(logging.WARNING)  # it logs a line for each request, as text
    meter = ServerErrors(services.metrics)
    waits = SharedWaits(services.ports.items, waits_per_tenant)
    app = create_app(services, LIMITS, meter=meter, base_url=base_url, at_once=False, waits=waits)
    app.add_exception_handler(ModuleNotFoundError, _absent)
    return _traced(cast(Handler, Mangum(app, lifespan="off")))


def _traced(handler: Handler) -> Handler:
    """A request that names no span of its client's is a part of the trace that X-Ray keeps of this event.

    So the tasks' spans of its operation lie in that trace. The event's subsegment has the request's id.
    """
    tracer = xray_tracer()

    def handle(event: Event, context: object) -> Any:  # noqa: ANN401 - JSON
        span, headers = traceparent(), event.get("headers") or {}
        if span is not None and "traceparent" not in headers:  # API Gateway writes names in lower case
            event = {**event, "headers": {**headers, "traceparent": span}}
        answer = handler(event, context)
        if tracer is not None:
            tracer.annotate(request_id=answer["headers"].get("x-request-id", ""))  # Mangum's own 500 has none
            tracer.answered(answer["statusCode"])
        return answer

    return handle


async def _absent(request: Request, error: Exception) -> Response:
    """The functions' package has no accountant: scipy alone would pass its cap."""
    log.error("a package that the function lacks", extra={"package": getattr(error, "name", None)})
    message = "this needs privacy accounting, which the API on AWS does not have; use the command line"
    return shaped(request, 501, "unsupported", message)


def _opened(settings: CloudSettings) -> Handler:
    services = cloud_services(settings, tracer=xray_tracer())
    return serving(services, settings.base_url, settings.waits_per_tenant)


handler = entry("api", lambda: start("api", _opened))
