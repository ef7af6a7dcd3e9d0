"""What is counted of each HTTP request, and where to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from tensafe.metrics.port import Metric, Metrics

PROBES: Final = frozenset({"/healthz", "/readyz", "/api/v1/healthz"})
"""Routes that ask after the service: what they answer is no user's failure."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A request and its end. `route` is the route's pattern, so that no identifier becomes a label."""

    route: str
    method: str
    status: int
    duration_s: float


class RequestMeter(Protocol):
    """Takes every answer of the edge; never raises, never blocks for long."""

    def answered(self, request: Answered) -> None:
        """Count it."""


class ServerErrors:
    """Counts answers that are the service's fault, for a platform that counts the others itself.

    A probe that hears 503 has been told the truth, and nobody was refused anything: it is not counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def answered(self, request: Answered) -> None:
        if request.status >= 500 and request.route not in PROBES:
            self._metrics.add(Metric.HTTP_5XX, route=request.route, status=str(request.status))
