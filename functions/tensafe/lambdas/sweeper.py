"""The scheduled function: rings again for what waits too long, deletes what is due, says how old work is."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Final

from tensafe.cloud.composition import cloud_services
from tensafe.contracts.errors import TensafeError
from tensafe.lambdas.entry import Event, Handler, entry, start
from tensafe.metrics.port import Metric
from tensafe.operations.readings import oldest_operation_age_s
from tensafe.operations.streams import now_ms
from tensafe.services import Services

log = logging.getLogger(__name__)

_RESERVED_S: Final = 20.0
"""Of the event's time, what the sweep leaves for retention and for the call that it is in the middle of."""


def sweeping(services: Services) -> Handler:
    """The duties of the single machine's maintenance that a platform does not do by itself.

    One that fails does not keep the other from being done; the event then fails, so that it is counted.
    """
    duties: dict[str, Callable[[float], float]] = {
        "age": lambda _: _age_told(services),
        "sweep": lambda left_s: services.sweeper.sweep(limit_s=left_s - _RESERVED_S),
        "retention": lambda _: services.retention.purge(),
    }

    def handle(_event: Event, context: object) -> dict[str, Any]:
        done: dict[str, Any] = {}
        failed: list[str] = []
        for name, duty in duties.items():
            try:
                done[name] = duty(_left_s(context))
            except TensafeError:
                log.exception("maintenance failed", extra={"duty": name})
                failed.append(name)
        if failed:
            raise RuntimeError(f"not done: {', '.join(failed)}")
        return done

    return handle


def _left_s(context: object) -> float:
    """Seconds until Lambda ends the event; without end where nobody says."""
    remaining_ms: Callable[[], int] | None = getattr(context, "get_remaining_time_in_millis", None)
    return math.inf if remaining_ms is None else remaining_ms() / 1000


def _age_told(services: Services) -> float:
    """Seconds that the oldest operation has waited, which an alarm watches."""
    age_s = oldest_operation_age_s(services.ports.items, now_ms())
    services.metrics.set(Metric.OPERATION_AGE_S, age_s)
    return round(age_s, 1)


handler = entry("sweeper", lambda: sweeping(start("sweeper", cloud_services)))
