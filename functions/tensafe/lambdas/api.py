"""The HTTPS edge behind API Gateway (HTTP API, payload format 2.0): Mangum over the same application."""

from __future__ import annotations

import logging
from typing import Final, cast

from mangum import Mangum

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tensafe.lambdas.entry import Handler, entry, start
from tensafe.services import Services

LIMITS: Final = EdgeLimits(body_bytes=4_400_000, answer_bytes=4_000_000)
"""Lambda takes and gives 6 MB of JSON, in which a binary body is base64: four bytes for three."""


def serving(services: Services) -> Handler:
    """One request per event. Nothing is waited for at start-up, so the application needs no lifespan."""
    logging.getLogger("mangum").setLevel(logging.WARNING)  # it logs a line for each request, as text
    return cast(Handler, Mangum(create_app(services, LIMITS), lifespan="off"))


handler = entry(lambda: serving(start("api")[1]))
