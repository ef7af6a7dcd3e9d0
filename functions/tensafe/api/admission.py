"""Submitting within the tenant's limits: what every face uses in place of `Submissions` itself.

A retry counts like any other request: whether it is one is known only after the store was asked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tensafe.operations.records import Operation, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tensafe.storage.ports import Write

log = logging.getLogger(__name__)


def submit(services: Services, stream: StreamRecord, submission: Submission) -> Operation:
    """As `Submissions.submit`; also raises RateLimited or QuotaExceeded."""
    services.quotas.admit_operation(stream.tenant, len(submission.payload))
    return _told(services, services.submissions.submit(stream, submission))


def append(services: Services, stream: StreamRecord, submission: Submission) -> Operation:
    """As `Submissions.append`; also raises RateLimited or QuotaExceeded."""
    services.quotas.admit_operation(stream.tenant, len(submission.payload))
    return _told(services, services.submissions.append(stream, submission))


def create(
    services: Services, stream: StreamRecord, creation: Sequence[Write], submission: Submission
) -> Operation:
    """As `Submissions.create`, for a run; also raises RateLimited or QuotaExceeded."""
    services.quotas.admit_operation(stream.tenant, len(submission.payload))
    if services.streams.find(stream.stream_id) is None:  # a retry makes no second run
        services.quotas.admit_run(stream.tenant)
    return _told(services, services.submissions.create(stream, creation, submission))


def _told(services: Services, operation: Operation) -> Operation:
    """The line of the edge's log that the worker's lines are found by: they have the same request id.

    The request's span has what the line has.
    """
    stream, seq, kind = operation.stream_id, operation.seq, operation.kind.value
    log.info("operation submitted", extra={"stream": stream, "seq": seq, "kind": kind})
    services.tracer.annotate(stream=stream, seq=seq, kind=kind)
    return operation
