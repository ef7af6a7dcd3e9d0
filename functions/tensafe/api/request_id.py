"""A request id on every answer and in every log line of the edge; one access line per request."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tensafe.correlation import correlated, well_formed_traceparent
from tensafe.metrics.requests import PROBES, Answered, RequestMeter

log = logging.getLogger(__name__)

HEADER: Final = b"x-request-id"
_STATE_KEY: Final = "tensafe_request_id"


def request_id_of(scope: Scope) -> str:
    """The id of the request in hand."""
    return str(scope.get(_STATE_KEY, ""))


class RequestIdMiddleware:
    """Gives each request an id of ours (a client's own is not trusted) and logs how it ended."""

    def __init__(self, app: ASGIApp, meter: RequestMeter | None = None) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req-{secrets.token_hex(8)}"
        scope[_STATE_KEY] = request_id
        began = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])
                message["headers"] = [*message["headers"], (HEADER, request_id.encode())]
            await send(message)

        try:
            with correlated(request_id, _traceparent(scope)):
                await self._app(scope, receive, send_with_id)
        finally:
            if self._meter is not None:
                self._meter.answered(
                    Answered(_route(scope), scope["method"], status, time.perf_counter() - began)
                )
            if status >= 400 or log.isEnabledFor(logging.DEBUG):
                self._log(scope, status, request_id, began)

    def _log(self, scope: Scope, status: int, request_id: str, began: float) -> None:
        path = _route(scope)
        if path in PROBES and status < 500:
            return
        log.info(
            "request answered",
            extra={
                "request_id": request_id,
                "method": scope["method"],
                "route": path,
                "status": status,
                "duration_ms": round((time.perf_counter() - began) * 1000, 2),
            },
        )


def _route(scope: Scope) -> str:
    """The route's pattern, which has no identifier of anybody in it."""
    return str(getattr(scope.get("route"), "path", "unrouted"))


def _traceparent(scope: Scope) -> str | None:
    found = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
    return None if found is None else well_formed_traceparent(found.decode("latin-1"))
