"""How every function starts: settings, logs, services, and then one handler for all its events.

Lambda runs a module's top level once for each of its processes, before the first event, with a whole core:
there everything is made that most events need, and a function that lacks a setting fails to start rather than
at a request. What later requests import, the package's build has imported (tools/build_function.py).
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from tensafe.cloud.settings import CloudSettings, read_cloud_settings
from tensafe.contracts.errors import ConfigurationError
from tensafe.lambdas import RUNTIME
from tensafe.lambdas.log_lines import Event, FunctionFormatter, Handler, told
from tensafe.lambdas.subsegments import traced
from tensafe.observability import configure_logging

log = logging.getLogger(__name__)

__all__ = ["Event", "Handler", "entry", "start"]
_T = TypeVar("_T")


def start(role: str, opened: Callable[[CloudSettings], _T]) -> _T:
    """What a function works with, over its settings. Raises ConfigurationError that names what is missing."""
    configure_logging(role, formatter=FunctionFormatter(role))
    logging.getLogger("botocore").setLevel(logging.WARNING)
    try:
        settings = read_cloud_settings()
        logging.getLogger().setLevel(settings.log_level)
        return opened(settings)
    except ConfigurationError as error:
        log.critical("not started: %s", error.message)  # our own words, which hold no values
        raise


def entry(role: str, make: Callable[[], Handler]) -> Handler:
    """A function's handler: made now if Lambda loads the module, else by the first event."""
    if RUNTIME in os.environ:
        at_start = told(traced(role, make()))
        gc.freeze()  # what is here by now stays as long as the process
        gc.enable()
        return at_start
    made: list[Handler] = []

    def handler(event: Event, context: object) -> Any:  # noqa: ANN401 - JSON, whatever the event's kind wants
        if not made:
            made.append(told(traced(role, make())))
        return made[0](event, context)

    return handler
