"""Where the API listens, and what has to be true before it may."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError
from tensafe.contracts.network import LOOPBACK

_PROBE_TIMEOUT_S: Final = 2.0
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what an operator may ask for


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address with its certificate. Loopback alone may do without TLS."""

    host: str = "127.0.0.1"
    port: int = 8000
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def url(self) -> str:
        """Base URL for clients; every-address (0.0.0.0, ::) becomes this machine's name."""
        scheme = "https" if self.tls_cert else "http"
        host = socket.gethostname() if self.host in _ANY else self.host
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{self.port}"

    def checked(self) -> Endpoint:
        """This endpoint, with a free port in place of port 0.

        Raises ConfigurationError unless the API can and may listen here.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("--tls-cert and --tls-key go together; give both or neither")
        if self.host not in LOOPBACK and self.tls_cert is None:
            raise ConfigurationError(
                f"{self.host} can be reached from other machines: give --tls-cert and --tls-key, "
                "or listen on 127.0.0.1"
            )
        if self.tls_cert is not None:
            self._check_certificate()
        return replace(self, port=self._free_port())

    def answers_ready(self) -> bool:
        """Whether GET /readyz says 200."""
        return self._status("/readyz") == http.client.OK

    def answers(self) -> bool:
        """Whether GET /healthz says anything at all, be it that there are too many requests."""
        return self._status("/healthz") is not None

    def _status(self, path: str) -> int | None:
        connection = self._connection()
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host = _ANY.get(self.host, self.host)
        if self.tls_cert is None:
            return http.client.HTTPConnection(host, self.port, timeout=_PROBE_TIMEOUT_S)
        # Trust this very certificate and no other, whoever issued it and whatever name it carries.
        context = ssl.create_default_context(cafile=str(self.tls_cert))
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return http.client.HTTPSConnection(host, self.port, timeout=_PROBE_TIMEOUT_S, context=context)

    def _check_certificate(self) -> None:
        try:
            # A pass phrase would be asked for on the terminal, by a child that has none.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(str(self.tls_cert), str(self.tls_key), password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigurationError(
                f"{self.tls_cert} and {self.tls_key} are no PEM certificate with its unencrypted key: {error}"
            ) from error

    def _free_port(self) -> int:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as listener:
                # As the API binds: a port in TIME_WAIT is free, one that is listened on is not.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                port: int = listener.getsockname()[1]
                return port
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"port {self.port} on {self.host} is in use; choose another with --port"
            else:
                message = f"cannot listen on {self.host}, port {self.port}: {error.strerror or error}"
            raise ConfigurationError(message) from error
