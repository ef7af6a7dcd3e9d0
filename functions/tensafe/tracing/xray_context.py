"""Which subsegment the work in hand lies in, through the threads and tasks of one event.

The SDK's own context is of one thread, and FastAPI runs a route in another: what it calls would hang from
Lambda's segment beside the handler's subsegment. A context variable is what anyio, asyncio and `carried` hand
on. Whoever has none (a thread of the process) is below Lambda's segment. Nothing is ever missing, so nothing
is raised or logged for it: without a trace, or in one that is not sampled, subsegments are dummies.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Any, Final

from aws_xray_sdk.core.exceptions.exceptions import AlreadyEndedException
from aws_xray_sdk.core.models.dummy_entities import DummySegment
from aws_xray_sdk.core.models.facade_segment import FacadeSegment
from aws_xray_sdk.core.models.trace_header import TraceHeader

_VARIABLE: Final = "_X_AMZN_TRACE_ID"
_open: Final = ContextVar[tuple[Any, ...]]("tensafe_subsegments", default=())
Segment = Any
Entity = Any
"""A segment or a subsegment; the SDK has no types."""


class EventContext:
    """What the recorder asks of its context (`aws_xray_sdk.core.context`), for one event at a time."""

    context_missing = "IGNORE_ERROR"

    def __init__(self) -> None:
        self._of: tuple[str, Segment] | None = None

    def get_trace_entity(self) -> Entity:
        """The innermost subsegment that is open; else Lambda's segment of the event in hand."""
        segment = self._segment()
        for one in reversed(_open.get()):
            if one.parent_segment is segment and one.in_progress:
                return one
        return segment

    def put_subsegment(self, subsegment: Entity) -> None:
        if subsegment.sampled:  # dummies hang from nothing: nobody would take them off
            above = self.get_trace_entity()
            try:
                above.add_subsegment(subsegment)
            except AlreadyEndedException:  # a thread that outlives what started it
                above.parent_segment.add_subsegment(subsegment)
        _open.set((*_open.get(), subsegment))

    def end_subsegment(self, end_time: float | None = None) -> bool:
        """Whether something may be ready to be sent."""
        within = _open.get()
        if not within:
            return False
        _open.set(within[:-1])
        within[-1].close(end_time)
        return bool(within[-1].sampled)

    def set_trace_entity(self, entity: Entity) -> None:
        _open.set((entity,) if getattr(entity, "type", None) == "subsegment" else ())

    def clear_trace_entities(self) -> None:
        _open.set(())

    def put_segment(self, segment: Segment) -> None:
        """Lambda's segment is Lambda's to begin."""

    def end_segment(self, end_time: float | None = None) -> None:
        """And to end."""

    def _segment(self) -> Segment:
        """Made anew for each event, whose header Lambda puts into the environment."""
        header, of = os.environ.get(_VARIABLE, ""), self._of
        if of is None or of[0] != header:
            self._of = of = (header, _segment_of(TraceHeader.from_header_str(header)))
        return of[1]


def _segment_of(header: TraceHeader) -> Segment:
    if not header.root or not header.parent or header.sampled not in (0, 1):
        return DummySegment()
    return FacadeSegment("facade", header.parent, header.root, header.sampled == 1)
