"""A connection to the native face: JSON and bytes over HTTP with one API key, retried where that is safe."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, Final

from tensafe.contracts.errors import InvalidRequest, TensafeError, Unavailable

ANSWER_MAX_BYTES: Final = 64 * 1024 * 1024
_RETRIED: Final = (429, 502, 503, 504)
_ATTEMPTS: Final = 6
_PAUSE_S: Final = 0.5


class ServiceError(TensafeError):
    """The service refused; `status` is HTTP's, `request_id` leads to the cause in its log."""

    code = "refused"
    category = "user"

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message, field=field, code=code)
        self.status = status
        self.request_id = request_id


class Service:
    """The service at `base_url`, as the owner of `api_key` sees it. Every call may be repeated safely."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeout_s: float = 60.0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises InvalidRequest unless `base_url` is http or https."""
        if urllib.parse.urlsplit(base_url).scheme not in ("http", "https"):
            raise InvalidRequest("base_url must begin with https:// or http://", field="base_url")
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._pause = pause

    def get(self, path: str) -> Any:  # noqa: ANN401 - any JSON
        """GET JSON. Raises ServiceError, Unavailable."""
        return json.loads(self.call("GET", path))

    def post(self, path: str, body: Mapping[str, object]) -> Any:  # noqa: ANN401 - any JSON
        """POST JSON, for what does the same again. Raises ServiceError, Unavailable."""
        return json.loads(self.call("POST", path, json.dumps(body).encode(), "application/json"))

    def put(self, path: str, data: bytes) -> Any:  # noqa: ANN401 - any JSON
        """PUT bytes. Raises ServiceError, Unavailable."""
        return json.loads(self.call("PUT", path, data, "application/octet-stream"))

    def delete(self, path: str) -> Any:  # noqa: ANN401 - any JSON
        """DELETE. Raises ServiceError, Unavailable."""
        return json.loads(self.call("DELETE", path))

    def call(self, method: str, path: str, data: bytes | None = None, kind: str | None = None) -> bytes:
        """The body of a successful answer; tried again while the service is busy or does not answer."""
        headers = {"X-API-Key": self._api_key} | ({"Content-Type": kind} if kind else {})
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
            self._base_url + path, data, headers, method=method
        )
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._pause(_PAUSE_S * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:  # noqa: S310
                    body: bytes = answer.read(ANSWER_MAX_BYTES + 1)
            except urllib.error.HTTPError as error:
                refusal = _refusal(error)
                if refusal.status not in _RETRIED or attempt == _ATTEMPTS - 1:
                    raise refusal from None
                continue
            except (OSError, HTTPException) as error:
                if attempt == _ATTEMPTS - 1:
                    raise Unavailable(f"{self._base_url} does not answer: {error}") from error
                continue
            if len(body) > ANSWER_MAX_BYTES:
                raise Unavailable(f"the answer passes {ANSWER_MAX_BYTES} bytes")
            return body
        raise Unavailable(f"{self._base_url} does not answer")


def quoted(name: str) -> str:
    """A name as one segment of a path."""
    return urllib.parse.quote(name, safe="")


def _refusal(error: urllib.error.HTTPError) -> ServiceError:
    """The service's own error body, or whatever stood in its way."""
    try:
        told = json.loads(error.read(1024 * 1024))["error"]
        return ServiceError(
            error.code,
            str(told["code"]),
            str(told["message"]),
            field=told["field"],
            request_id=told["request_id"],
        )
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        return ServiceError(error.code, "http_error", f"HTTP {error.code}: {error.reason}")
