"""The other side of a comparison, in a process of its own, started fresh."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Final

import psutil

_START_TIMEOUT_S: Final = 300.0
_ANSWER_TIMEOUT_S: Final = 600.0
_END_TIMEOUT_S: Final = 20.0

Handler = Callable[[Any], Any]
Factory = Callable[..., Handler]
"""Makes, in the peer, the function that answers its requests."""


class Peer:
    """A process that holds what `factory(*arguments)` returned, and calls it. A context manager."""

    def __init__(self, factory: Factory, *arguments: Any) -> None:  # noqa: ANN401 - for `factory` to say
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, arguments))
        self._process.start()
        theirs.close()
        try:
            self._receive(_START_TIMEOUT_S)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        started = _descendants(self._process.pid)
        self._pipe.close()  # the peer reads the end of its input, and ends
        self._process.join(_END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        # vLLM leaves its engine and workers behind, 2 GB that compute on.
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=_END_TIMEOUT_S)

    def __call__(self, request: Any) -> Any:  # noqa: ANN401 - what the handler takes and returns
        self._pipe.send(request)
        return self._receive(_ANSWER_TIMEOUT_S)

    def resident_mb(self) -> float:
        """Of it and of all that it started, in 10^6 bytes; pages that they share count for each."""
        processes = [psutil.Process(self._process.pid), *_descendants(self._process.pid)]
        return sum(float(one.memory_info().rss) for one in processes) / 1e6

    def _receive(self, timeout_s: float) -> Any:  # noqa: ANN401
        if not self._pipe.poll(timeout_s):
            raise TimeoutError(f"no answer from the peer within {timeout_s:.0f} s")
        failed, value = self._pipe.recv()
        if failed:
            raise RuntimeError(f"the peer failed: {value}")
        return value


def _descendants(pid: int | None) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _serve(pipe: Connection[Any, Any], factory: Factory, arguments: tuple[Any, ...]) -> None:
    try:
        handler = factory(*arguments)
        pipe.send((False, None))
        while True:
            pipe.send((False, handler(pipe.recv())))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - told to the parent, whatever it is
        pipe.send((True, f"{type(error).__name__}: {error}"))
