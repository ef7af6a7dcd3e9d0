"""The function in front of every route that needs a credential: a stranger never starts the API's."""

from __future__ import annotations

from tensafe.auth.callers import Callers
from tensafe.auth.gateway import authorize
from tensafe.cloud.callers import cloud_callers
from tensafe.lambdas.entry import Handler, entry, start


def authorizing(callers: Callers) -> Handler:
    """One credential per event (`authorize`)."""
    return lambda event, _context: authorize(callers, event)


handler = entry("authorizer", lambda: authorizing(start("authorizer", cloud_callers)))
