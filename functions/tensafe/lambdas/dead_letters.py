"""The consumer of the dead queues: an SQS event source that reports failed messages one by one."""

from __future__ import annotations

import json
import logging
from typing import Any

from tensafe.cloud.composition import cloud_services
from tensafe.contracts.errors import TensafeError
from tensafe.lambdas.entry import Event, Handler, entry, start
from tensafe.services import Services

log = logging.getLogger(__name__)


def consuming(services: Services) -> Handler:
    """Settles each message of a batch (`DeadLetters.settle_message`); the answer names those that stay.

    The event source needs ReportBatchItemFailures. Of a FIFO queue, what follows a failed message of the
    same group is left too: messages of a group are handled in order.
    """

    def handle(event: Event, _context: object) -> dict[str, Any]:
        failed: list[str] = []
        stuck: set[str] = set()
        for record in event["Records"]:
            group = record.get("attributes", {}).get("MessageGroupId")
            if group in stuck or not _settled(services, record):
                failed.append(record["messageId"])
                if group is not None:
                    stuck.add(group)
        return {"batchItemFailures": [{"itemIdentifier": one} for one in failed]}

    return handle


def _settled(services: Services, record: Event) -> bool:
    try:
        body = json.loads(record["body"])
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("stream"), str):
        log.warning("a message that is not ours", extra={"queue": _queue(record)})
        return True  # nothing will ever come of it
    try:
        services.dead_letters.settle_message(body)
    except TensafeError:
        log.exception("dead message not settled", extra={"queue": _queue(record)})
        return False
    return True


def _queue(record: Event) -> str:
    return str(record.get("eventSourceARN", "")).rpartition(":")[2]


handler = entry("dead_letters", lambda: consuming(start("dead_letters", cloud_services)))
