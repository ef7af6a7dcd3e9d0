"""The port that takes spans, and the one that takes none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Tracer(Protocol):
    """Takes spans. Attributes are identifiers, kinds and counts, never data; of an error, its type."""

    def span(
        self, name: str, traceparent: str | None, **attributes: str | int
    ) -> AbstractContextManager[object]:
        """The block is a span, below the one that `traceparent` names (W3C Trace Context), or a root."""

    def annotate(self, **attributes: str | int) -> None:
        """Add to the span in hand, if there is one."""


class NoTracer:
    """Implements `Tracer`."""

    def span(
        self, name: str, traceparent: str | None, **attributes: str | int
    ) -> AbstractContextManager[object]:
        """Nothing is kept."""
        return nullcontext()

    def annotate(self, **attributes: str | int) -> None:
        """Nothing is kept."""
