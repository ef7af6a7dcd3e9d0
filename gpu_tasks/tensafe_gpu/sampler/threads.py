"""Calls of storage in threads, so that none holds up the loop that serves all others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from tensafe.correlation import carried

_THREADS: Final = 8
_P = ParamSpec("_P")
_T = TypeVar("_T")


class StorageThreads:
    """Runs what it is called with, with the caller's request id in its log."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="storage")

    async def __call__(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, carried(call))
