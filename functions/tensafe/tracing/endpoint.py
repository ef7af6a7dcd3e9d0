"""The tracer that a setting asks for."""

from __future__ import annotations

from tensafe.tracing.port import Tracer


def tracer_to(endpoint: str | None) -> Tracer | None:
    """Sends spans to an OTLP collector; None without one. Raises ConfigurationError (`OtlpTracer`)."""
    if not endpoint:
        return None
    from tensafe.tracing.otlp import OtlpTracer  # noqa: PLC0415 - an extra that is seldom there

    return OtlpTracer(endpoint)
