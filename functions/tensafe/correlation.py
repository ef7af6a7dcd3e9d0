"""One id from the HTTP request that submitted an operation to every log line about it, in any process.

The edge sets it for a request, a worker for the operation in hand; `tensafe.observability` writes it
into each log line, `tensafe.operations` into the operation's record and the queue's message.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar

_request_id: Final = contextvars.ContextVar[str | None]("tensafe_request_id", default=None)
_P = ParamSpec("_P")
_T = TypeVar("_T")


def current_request_id() -> str | None:
    """The id of the request that the work in hand is for; None for work that nobody asked for."""
    return _request_id.get()


@contextmanager
def correlated(request_id: str | None) -> Iterator[None]:
    """Work for this request until the end of the block."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def carried(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function with this moment's id, for another thread; to be called once."""
    context = contextvars.copy_context()

    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return context.run(function, *args, **kwargs)

    return run
