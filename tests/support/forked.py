"""A piece of work in a child that is really forked, with all that its parent has in memory."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_child(work: Callable[[], T]) -> T:
    """What it returns, or raises, in a child that ends with it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = pickle.dumps((True, work()))
        except BaseException as error:  # noqa: BLE001 - nothing of the parent's may go on here
            answer = pickle.dumps((False, f"{type(error).__name__}: {error}"))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    well, answer = pickle.loads(told)  # noqa: S301 - this test's own child
    assert well, answer
    return answer  # type: ignore[no-any-return]
