"""One id from the HTTP request that submitted an operation to every log line about it, in any process.

The edge sets it for a request, a worker for the operation in hand; `tensafe.observability` writes it
into each log line, `tensafe.operations` into the operation's record and the queue's message.
"""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar

_request_id: Final = contextvars.ContextVar[str | None]("tensafe_request_id", default=None)
_traceparent: Final = contextvars.ContextVar[str | None]("tensafe_traceparent", default=None)
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_P = ParamSpec("_P")
_T = TypeVar("_T")


def current_request_id() -> str | None:
    """The id of the request that the work in hand is for; None for work that nobody asked for."""
    return _request_id.get()


def current_traceparent() -> str | None:
    """The client's span that the work in hand is for, if it named one (W3C Trace Context, version 00)."""
    return _traceparent.get()


def well_formed_traceparent(header: str | None) -> str | None:
    """The header if it is one, else None: a client's mistake in it is no reason to refuse a request."""
    return header if header is not None and _TRACEPARENT.fullmatch(header) else None


@contextmanager
def correlated(request_id: str | None, traceparent: str | None = None) -> Iterator[None]:
    """Work for this request until the end of the block."""
    tokens = _request_id.set(request_id), _traceparent.set(traceparent)
    try:
        yield
    finally:
        _request_id.reset(tokens[0])
        _traceparent.reset(tokens[1])


def carried(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function with this moment's id, for another thread; to be called once."""
    context = contextvars.copy_context()

    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return context.run(function, *args, **kwargs)

    return run
