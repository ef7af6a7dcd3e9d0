"""The scheduled function: rings again for what waits too long, and deletes what is due."""

from __future__ import annotations

import logging
from typing import Any

from tensafe.contracts.errors import TensafeError
from tensafe.lambdas.entry import Event, Handler, entry, start
from tensafe.services import Services

log = logging.getLogger(__name__)


def sweeping(services: Services) -> Handler:
    """The duties of the single machine's maintenance that a platform does not do by itself.

    One that fails does not keep the other from being done; the event then fails, so that it is counted.
    """
    duties = {"sweep": services.sweeper.sweep, "retention": services.retention.purge}

    def handle(_event: Event, _context: object) -> dict[str, Any]:
        done: dict[str, Any] = {}
        failed: list[str] = []
        for name, duty in duties.items():
            try:
                done[name] = duty()
            except TensafeError:
                log.exception("maintenance failed", extra={"duty": name})
                failed.append(name)
        if failed:
            raise RuntimeError(f"not done: {', '.join(failed)}")
        return done

    return handle


handler = entry(lambda: sweeping(start("sweeper")[1]))
