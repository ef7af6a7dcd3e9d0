"""Events as API Gateway's HTTP API makes them (payload format 2.0), and its reading of the answers."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

TEXT = ("text/", "application/json", "application/javascript", "application/xml")
"""Bodies of all other types arrive in base64."""


@dataclass(frozen=True)
class HttpResponse:
    status: int
    headers: dict[str, str]
    body: bytes


def http_event(
    method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> dict[str, Any]:
    """The event of one request to `$default`."""
    parts = urlsplit(url)
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    lower |= {"host": "tensafe.example", "x-forwarded-proto": "https", "x-forwarded-port": "443"}
    lower["content-length"] = str(len(body))
    text = lower.get("content-type", "").startswith(TEXT) and "content-encoding" not in lower
    path = quote(parts.path, safe="/:%@+=~")
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": f"{method} {parts.path}",
        "rawPath": path,
        "rawQueryString": parts.query,
        "headers": lower,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api",
            "domainName": "tensafe.example",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": "tests",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": f"{method} {parts.path}",
            "stage": "$default",
            "timeEpoch": int(time.time() * 1000),
        },
        "isBase64Encoded": bool(body) and not text,
    }
    if parts.query:
        event["queryStringParameters"] = dict(parse_qsl(parts.query))
    if body:
        event["body"] = body.decode() if text else base64.b64encode(body).decode()
    return event


def http_response(answer: Mapping[str, Any]) -> HttpResponse:
    """What the client gets."""
    body = answer.get("body") or ""
    data = base64.b64decode(body) if answer.get("isBase64Encoded") else body.encode()
    headers = {name.lower(): value for name, value in (answer.get("headers") or {}).items()}
    return HttpResponse(int(answer["statusCode"]), headers, data)
