"""`python -m tensafe.api.server`: the edge of the single-machine mode, on uvicorn."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import uvicorn
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tensafe.api.app import create_app
from tensafe.api.capped_http import CappedHttp
from tensafe.api.metrics_page import serve_metrics
from tensafe.contracts.errors import ConfigurationError
from tensafe.contracts.network import LOOPBACK
from tensafe.local.composition import open_services
from tensafe.local.process import die_with_parent, open_files_as_may_be
from tensafe.local.settings import LocalSettings
from tensafe.observability import configure_logging

log = logging.getLogger(__name__)


class ServerSettings(BaseSettings):
    """Where to listen."""

    model_config = SettingsConfigDict(env_prefix="TENSAFE_", extra="ignore", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None


def serve(server: ServerSettings, settings: LocalSettings) -> None:
    """Serve until SIGTERM. Raises ConfigurationError for an address without TLS that leaves the machine."""
    tls = server.tls_cert is not None and server.tls_key is not None
    if server.host not in LOOPBACK and not tls:
        raise ConfigurationError(
            f"listening on {server.host} needs a TLS certificate: give --tls-cert and --tls-key, "
            "or listen on 127.0.0.1"
        )
    configure_logging("api", settings.log_level)
    open_files_as_may_be()
    # The loop's thread takes the lock back within half a millisecond from those that write.
    sys.setswitchinterval(0.0005)
    services = open_services(settings)
    meter = serve_metrics(services, settings.metrics_port)[0] if settings.metrics_port else None
    app = create_app(services, meter=meter)
    uvicorn.run(
        app,
        host=server.host,
        port=server.port,
        ssl_certfile=server.tls_cert,
        ssl_keyfile=server.tls_key,
        loop="uvloop",
        http=CappedHttp,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=10,
    )


def main() -> None:
    """Read the environment and serve."""
    die_with_parent()
    try:
        serve(ServerSettings(), LocalSettings())  # type: ignore[call-arg]  # read from the environment
    except ConfigurationError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
