"""Errors as HTTP: one JSON shape, the status by type and nowhere else.

    {"error": {"code": "...", "message": "...", "field": "..." | null, "request_id": "..."}}

The Tinker SDK retries 408, 409, 429 and 5xx for minutes, so on that face what is final is 422: Conflict
and RunBlocked too. A future it asks for again at once after a 5xx, for ever: there, what may pass is 429,
after which it pauses for 1 to 30 s, and what will not is a future that has failed.
"""

from __future__ import annotations

import logging
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from tensafe.api.request_id import request_id_of
from tensafe.contracts import errors
from tensafe.storage import ports

log = logging.getLogger(__name__)

STATUS: Final[dict[type[errors.TensafeError], int]] = {
    errors.InvalidRequest: 422,
    errors.PayloadTooLarge: 413,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.RunBlocked: 409,
    errors.BudgetExceeded: 422,
    errors.QuotaExceeded: 429,
    errors.Unavailable: 503,
    errors.HeRefused: 503,
    errors.TooManyRequests: 429,
    errors.IntegrityError: 500,
    errors.ConfigurationError: 500,
    ports.StorageError: 503,
    ports.UnwrapFailed: 500,
    errors.TensafeError: 500,
}
TINKER_PREFIX: Final = "/api/v1"
_HEADERS: Final = {401: {"WWW-Authenticate": 'Bearer realm="tensafe"'}}
POLLED_PATH: Final = f"{TINKER_PREFIX}/retrieve_future"
_FINAL_ON_TINKER: Final = {409: 422, 410: 404}


def status_of(error: errors.TensafeError, *, tinker: bool) -> int:
    """The status of an error's nearest class in the table."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if tinker and isinstance(error, errors.QuotaExceeded):
        return 422  # the SDK would go on asking
    return _FINAL_ON_TINKER.get(status, status) if tinker else status


def error_response(request: Request, error: errors.TensafeError) -> Response:
    """The documented shape; the message of a server's fault stays in the log."""
    status = status_of(error, tinker=request.url.path.startswith(TINKER_PREFIX))
    message = error.message if status < 500 or isinstance(error, errors.Unavailable) else _SERVER_FAULT
    if status >= 500:
        return _fault(request, status, error.code, message, error.field)
    headers = {"Retry-After": _retry_after(error)} if status == 429 else _HEADERS.get(status)
    headers = {**(headers or {}), **submitted_by(getattr(error, "submitted_by", None))}
    return shaped(request, status, error.code, message, error.field, headers)


def submitted_by(request_id: str | None) -> dict[str, str]:
    """The header that names the request which submitted the operation in question."""
    return {} if request_id is None else {"X-Submitted-By": request_id}


def _retry_after(error: errors.TensafeError) -> str:
    """Seconds: when a window ends, or, of what waiting alone does not change, a minute."""
    return str(error.retry_after_s if isinstance(error, errors.TooManyRequests) else 60)


def shaped(
    request: Request,
    status: int,
    code: str,
    message: str,
    field: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """The one error body."""
    body = {"code": code, "message": message, "field": field, "request_id": request_id_of(request.scope)}
    # `detail` repeats the sentence where OpenAPI clients and the Tinker SDK look for it.
    return JSONResponse({"error": body, "detail": message}, status, headers)


def _fault(request: Request, status: int, code: str, message: str, field: str | None = None) -> Response:
    """What is not the caller's doing: the status, but for one who would ask again without a pause."""
    polled = request.url.path == POLLED_PATH
    if status == 503:
        return shaped(request, 429 if polled else 503, code, message, field, {"Retry-After": "1"})
    if polled:
        # Here: the models of that face are loaded with its first request.
        from tensafe.wire.tinker_responses.futures import RequestFailedResponse  # noqa: PLC0415

        told = f"[{code}] {message} (request id {request_id_of(request.scope)})"
        return JSONResponse(RequestFailedResponse(error=told, category="server").model_dump())
    return shaped(request, status, code, message, field)


_SERVER_FAULT: Final = "the service failed; the request id leads to the cause in its log"
_HTTP_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}


def install(app: FastAPI) -> None:
    """Make every failure leave in the one shape."""
    app.exception_handler(errors.TensafeError)(_deliberate)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(ClientDisconnect)(_disconnected)
    app.exception_handler(Exception)(_unexpected)


async def _deliberate(request: Request, error: errors.TensafeError) -> Response:
    if status_of(error, tinker=False) >= 500:
        log.error("request failed: %s", error.code, exc_info=error, extra=_ids(request))
    return error_response(request, error)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """A query parameter or header that FastAPI itself refused."""
    problem = error.errors()[0]
    location = [part for part in problem["loc"] if part not in ("body", "query", "path", "header")]
    field = ".".join(str(part)[:64] for part in location) or "body"
    message = "it is missing" if problem["type"] == "missing" else str(problem["msg"])
    return shaped(request, 422, "invalid_request", f"{field}: {message}", field)


async def _http(request: Request, error: HTTPException) -> Response:
    """No such route, or not with this method."""
    code = _HTTP_CODES.get(error.status_code, "http_error")
    headers = dict(error.headers) if error.headers else None
    return shaped(request, error.status_code, code, str(error.detail), headers=headers)


async def _disconnected(request: Request, _: Exception) -> Response:
    """Nobody reads this answer; it is no failure of the service."""
    return shaped(request, 400, "client_disconnected", "the body never arrived")


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request failed unexpectedly", exc_info=error, extra=_ids(request))
    return _fault(request, 500, "internal_error", _SERVER_FAULT)


def _ids(request: Request) -> dict[str, str]:
    route = getattr(request.scope.get("route"), "path", "unrouted")
    return {"request_id": request_id_of(request.scope), "route": route}
