"""Fetches an issuer's documents over HTTPS: no redirects, no proxies, a cap on size and on time."""

from __future__ import annotations

import http.client
import ssl
import time
from typing import Final
from urllib.parse import urlsplit

from tensafe.contracts.errors import Unavailable
from tensafe.contracts.network import trusted_url

TIMEOUT_S: Final = 3.0
"""For one step of the connection, and for the whole body."""


class WebDocuments:
    """The adapter of `Documents` for real issuers."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def get(self, url: str, *, max_bytes: int) -> bytes:
        """As `Documents.get` says."""
        if not trusted_url(url):
            raise Unavailable("an issuer's documents are fetched over https alone")
        parts = urlsplit(url)
        connection = self._connection(parts.scheme, parts.hostname or "", parts.port)
        deadline = time.monotonic() + self._timeout_s
        try:
            connection.request("GET", parts.path or "/", headers={"Accept": "application/json"})
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise Unavailable(f"the issuer answered {response.status}")
            return _body(response, max_bytes, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the issuer cannot be reached ({type(error).__name__})") from error
        finally:
            connection.close()

    def _connection(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        if scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)


def _body(response: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    received = bytearray()
    while piece := response.read1(max_bytes + 1 - len(received)):
        received += piece
        if len(received) > max_bytes:
            raise Unavailable(f"a document of the issuer passes {max_bytes} bytes")
        if time.monotonic() > deadline:
            raise Unavailable("the issuer takes too long")
    return bytes(received)
