"""What the drain loop says of operations and failures: identifiers, kinds, places and durations."""

from __future__ import annotations

import logging
import time
import traceback

from tensafe.operations.records import Operation
from tensafe.operations.streams import now_ms

log = logging.getLogger(__name__)


def log_done(operation: Operation, began: float, outcome: str) -> None:
    """An operation has its outcome; `began` is its start on the monotonic clock, in seconds."""
    log.info(
        "operation %s",
        outcome,
        extra={
            "stream": operation.stream_id,
            "seq": operation.seq,
            "kind": operation.kind.value,
            "duration_ms": round((time.monotonic() - began) * 1000, 1),
            "queued_ms": now_ms() - operation.created_ms,
        },
    )


def log_failure(event: str, error: Exception, stream_id: str) -> None:
    """The type of an error and the places that it passed; never its message, which may quote values."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames[-6:]]
    log.error(event, type(error).__name__, extra={"stream": stream_id, "places": places})
