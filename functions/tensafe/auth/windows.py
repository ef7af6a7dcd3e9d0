"""Rates that hold across processes: one counter per tenant and window, taken in shares.

A process writes once for many requests: it takes a share of the window's units, twice as large each time
(1/256 of the limit at first, 1/16 at most), and spends it by itself. What it has not spent when the
window ends is lost. So in each window of WINDOW_S the units spent are at most the limit, exactly, however
many processes there are and whatever their clocks say, since the counter's window never moves back. They
may be fewer while many processes hold shares, and around the border of two windows as many as both allow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from tensafe.auth.tenant_items import Read, tenant_item
from tensafe.contracts.errors import QuotaExceeded, RateLimited, Unavailable
from tensafe.storage.ports import ConditionFailed, Items, JsonValue, Put

WINDOW_S: Final = 10
_SMALLEST: Final = 256
_LARGEST: Final = 16
_TRIES: Final = 64
_SHARES_MAX: Final = 10_000


@dataclass(slots=True)
class _Share:
    """What this process holds of one tenant's window."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    window: int = -1
    left: dict[str, int] = field(default_factory=dict)
    part: int = _SMALLEST
    spent: frozenset[str] = frozenset()
    """Units of which the window has none left for anybody."""


class Windows:
    """Takes units of a tenant's present window."""

    def __init__(self, items: Items, *, clock_ms: Callable[[], int]) -> None:
        self._items = items
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        self._shares: dict[str, _Share] = {}

    def take(
        self, tenant: str, wanted: Mapping[str, int], limits: Mapping[str, int], read: Read | None = None
    ) -> None:
        """Take all of `wanted`, or nothing; `limits` are for one window. `read` is how the counter is read.

        Raises RateLimited until the window ends, QuotaExceeded for what no window could grant.
        """
        for name, units in wanted.items():
            if units > limits[name]:
                raise QuotaExceeded(
                    f"one request needs {units} {name}, and this tenant may use {limits[name]} in "
                    f"{WINDOW_S} s; ask for less at once, or have the operator raise the limit"
                )
        share = self._share(tenant)
        with share.lock:
            now = self._clock_ms() // (WINDOW_S * 1000)
            if share.window < now:
                share.window, share.left, share.spent, share.part = now, {}, frozenset(), _SMALLEST
            if any(share.left.get(name, 0) < units for name, units in wanted.items()):
                self._enlarge(tenant, share, wanted, limits, read or self._items.get)
            for name, units in wanted.items():
                share.left[name] -= units

    def _share(self, tenant: str) -> _Share:
        with self._lock:
            if len(self._shares) >= _SHARES_MAX and tenant not in self._shares:
                self._shares.clear()  # what they held is lost, never spent twice
            return self._shares.setdefault(tenant, _Share())

    def _enlarge(
        self, tenant: str, share: _Share, wanted: Mapping[str, int], limits: Mapping[str, int], read: Read
    ) -> None:
        needed = {name: units - share.left.get(name, 0) for name, units in wanted.items()}
        self._refuse_if_short(share, {name for name in share.spent if needed[name] > 0})
        key = tenant_item(tenant, "window")
        for _ in range(_TRIES):
            item = read(key)
            body = item.body if item else {}
            present = cast(int, body.get("window", -1))
            used = cast("dict[str, int]", body.get("used", {})) if present >= share.window else {}
            free = {name: max(0, limits[name] - used.get(name, 0)) for name in wanted}
            share.spent = frozenset(name for name, units in free.items() if not units)
            self._refuse_if_short(share, {name for name, units in needed.items() if units > free[name]})
            granted = {
                name: min(free[name], max(needed[name], limits[name] // share.part)) for name in wanted
            }
            counted: dict[str, JsonValue] = {
                **used,
                **{name: used.get(name, 0) + units for name, units in granted.items()},
            }
            window = max(present, share.window)
            try:
                # Shares that a power cut makes the store forget were taken in a window that is over.
                self._items.write_relaxed(
                    [Put(key, {"window": window, "used": counted}, item.version if item else 0)]
                )
            except ConditionFailed:
                continue
            share.window, share.part = window, max(_LARGEST, share.part // 2)
            for name, units in granted.items():
                share.left[name] = share.left.get(name, 0) + units
            return
        raise Unavailable("this tenant's counters are changing too fast; try again")

    def _refuse_if_short(self, share: _Share, short: set[str]) -> None:
        if short:
            left_ms = (share.window + 1) * WINDOW_S * 1000 - self._clock_ms()
            raise RateLimited(
                f"this tenant has used its {' and '.join(sorted(short))} for now; send more slowly, or have "
                "the operator raise the limit (`tensafe tenants limits`)",
                retry_after_s=max(1, -(-left_ms // 1000)),
            )
