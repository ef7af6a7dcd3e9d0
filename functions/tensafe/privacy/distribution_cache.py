"""Remembers loss distributions, the last used ones, up to a number of bytes in all."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, Final, TypeVar, cast

KEPT_BYTES: Final = 48 * 2**20
"""A distribution has about 100 KB on the coarsest grid, up to 40 MB on the finest: a count bounds nothing."""
_FLOAT_BYTES: Final = 8
_Function = TypeVar("_Function", bound=Callable[..., Any])


class DistributionCache:
    """Of functions whose results are dp-accounting's PrivacyLossDistribution, or None. Thread-safe."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._bytes = 0
        self._found: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """What is kept now."""
        return self._bytes

    def remembering(self, function: _Function) -> _Function:
        """The function, which answers equal (positional, hashable) arguments from memory."""

        @wraps(function)
        def remembered(*arguments: Hashable) -> Any:  # noqa: ANN401 - what the function returns
            key = (function, arguments)
            with self._lock:
                if key in self._found:
                    self._found.move_to_end(key)
                    return self._found[key][0]
            result = function(*arguments)
            with self._lock:
                self._keep(key, result)
            return result

        return cast(_Function, remembered)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._found.clear()
            self._bytes = 0

    def _keep(self, key: Hashable, result: Any) -> None:  # noqa: ANN401
        size = distribution_bytes(result)
        if key in self._found or size > self._kept_bytes:
            return
        self._found[key] = (result, size)
        self._bytes += size
        while self._bytes > self._kept_bytes:
            _, (_, freed) = self._found.popitem(last=False)
            self._bytes -= freed


def distribution_bytes(distribution: Any) -> int:  # noqa: ANN401 - dp-accounting has no types
    """Of its probabilities for both directions, which may be one array."""
    if distribution is None:
        return 0
    both = {id(one): one for one in (distribution._pmf_remove, distribution._pmf_add)}
    return sum(_FLOAT_BYTES * one.size for one in both.values())
