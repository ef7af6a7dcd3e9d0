"""JSON logs: constant event text, data as fields; identifiers, sizes, durations and counts only."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from tensafe.correlation import current_request_id

_log = logging.getLogger(__name__)

_UNHANDLED: Final = "unhandled exception"
"""In place of asyncio's own text, which quotes the task and its exception."""
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, role, logger, event, the record's `extra` fields, and the id
    of the request that the work is for.

    Of an exception, only its type and the places it passed are written: messages of libraries may quote
    values, and values may be prompts, tokens or gradients.
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.fields(record), default=str, separators=(",", ":"))

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        """What the line says, by name."""
        fields: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname,
            "role": self._role,
            "logger": record.name,
            "event": _UNHANDLED if record.name == "asyncio" and record.exc_info else record.getMessage(),
        }
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        fields.update(extra)
        if "request_id" not in fields and (request_id := current_request_id()) is not None:
            fields["request_id"] = request_id
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = record.exc_info[0].__name__
            fields["places"] = _places(record)
        return fields


def configure_logging(role: str, level: str = "INFO", formatter: logging.Formatter | None = None) -> None:
    """Send everything to standard error as JSON; libraries that quote requests stay at warnings.

    `formatter` is for a process whose lines say more than `JsonFormatter`'s.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter or JsonFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    log_unhandled_exceptions()
    for noisy in ("httpx", "httpcore", "transformers", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def log_unhandled_exceptions(tell: Callable[[str], object] | None = None) -> None:
    """From now on what no code catches is logged like any exception: its type and places, no message.

    Python's own hooks print the message. `tell` is given the type when it ends the main thread, for a
    process whose log nobody watches.
    """

    def unhandled(error: BaseException | None, thread: str) -> None:
        if error is not None and not isinstance(error, SystemExit):
            _log.critical(_UNHANDLED, exc_info=error, extra={"in_thread": thread})

    def main(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        unhandled(error, "main")
        if tell is not None:
            tell(type(error).__name__)

    sys.excepthook = main
    threading.excepthook = lambda args: unhandled(
        args.exc_value, args.thread.name if args.thread else "unknown"
    )
    sys.unraisablehook = lambda args: unhandled(args.exc_value, threading.current_thread().name)


def _places(record: logging.LogRecord) -> list[str]:
    traceback = record.exc_info[2] if record.exc_info else None
    places: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return places[-8:]
