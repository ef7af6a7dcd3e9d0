"""Giving back at once what dead workers held, instead of waiting until leases and messages time out."""

from __future__ import annotations

import logging

from tensafe.local.composition import sqlite_queues
from tensafe.services import Services

log = logging.getLogger(__name__)


def reclaim(services: Services, owner: str, queue: str | None, *, counted: bool) -> None:
    """Free the leases of an owner that is known to be dead, then the messages of its queue. Idempotent.

    `counted` is false if it died with its supervisor or at its hand: then what it ran is not suspected.

    The owner was the only consumer of `queue`, so every message in flight there was its own, those
    included that it had received and not yet claimed. Leases go first: whoever takes a message next
    finds its run free. Should somebody else hold a message after all, fencing decides who may write.
    """
    forgiven = 0 if counted else services.sweeper.forgive(owner)
    freed = services.leases.break_all(owner, counted=counted)
    services.workers.withdraw(owner)
    messages = sqlite_queues(services).hand_back(queue) if queue is not None else 0
    if freed or messages:
        log.info(
            "given back for a dead worker",
            extra={"owner": owner, "leases": len(freed), "messages": messages, "forgiven": forgiven},
        )
