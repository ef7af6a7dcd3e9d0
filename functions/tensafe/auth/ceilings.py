"""Numbers of things that a tenant may have at once, held across processes without counting at each request.

The store keeps an upper bound of the number. It only grows, by what processes take before they create
something; when it meets the limit, the things are counted and the bound comes down to that, plus what was
taken so recently that it may not be there yet. So nothing is written when a thing ends, and a process
that dies leaves no more than a bound that is a little high. At most the limit exists, exactly, if whoever
takes creates within COMMIT_S and clocks differ by less than SKEW_S. What was taken in the OUTSTANDING_S
before a count may be counted twice, so that for so long somewhat less than the limit is admitted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from tensafe.auth.tenant_items import Read, tenant_item
from tensafe.contracts.errors import Unavailable
from tensafe.storage.ports import ConditionFailed, Items, JsonValue, Key, Put

HELD_S: Final = 5.0
"""How long a process may use what it took ahead."""
COMMIT_S: Final = 5.0
SKEW_S: Final = 2.0
OUTSTANDING_S: Final = HELD_S + COMMIT_S + SKEW_S
_REFUSED_S: Final = 1.0
"""How long a refusal holds in this process: counting is not for every request of an impatient client."""
_FIRST: Final = 16
"""A process begins with this part of the most that it may take ahead, then twice as many each time."""
_TRIES: Final = 64
_SHARES_MAX: Final = 10_000
Count = Callable[[int], int]
"""How many there are; may stop at the given number."""


@dataclass(slots=True)
class _Share:
    lock: threading.Lock = field(default_factory=threading.Lock)
    left: int = 0
    batch: int = 1
    taken_ms: int = 0
    refused_ms: int | None = None


class Ceilings:
    """Takes one of something, if the tenant may have one more."""

    def __init__(self, items: Items, *, clock_ms: Callable[[], int]) -> None:
        self._items = items
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        self._shares: dict[tuple[str, str], _Share] = {}

    def take(
        self,
        tenant: str,
        name: str,
        limit: int,
        count: Count,
        *,
        batch_max: int = 1,
        read: Read | None = None,
    ) -> bool:
        """Whether there may be one more, which the caller then creates within COMMIT_S.

        A process takes up to `batch_max` ahead. `read` is how the bound is read. Raises Unavailable.
        """
        share = self._share(tenant, name)
        with share.lock:
            now = self._clock_ms()
            if share.refused_ms is not None and 0 <= now - share.refused_ms < _REFUSED_S * 1000:
                return False
            if not 0 <= now - share.taken_ms < HELD_S * 1000:
                share.left, share.batch = 0, max(1, batch_max // _FIRST)
            if not share.left:
                share.left = self._more(
                    tenant_item(tenant, f"number/{name}"), limit, count, share.batch, read or self._items.get
                )
                share.taken_ms = now
                share.batch = min(batch_max, share.batch * 2)
            share.refused_ms = None if share.left else now
            if not share.left:
                return False
            share.left -= 1
            return True

    def _share(self, tenant: str, name: str) -> _Share:
        with self._lock:
            if len(self._shares) >= _SHARES_MAX and (tenant, name) not in self._shares:
                self._shares.clear()
            return self._shares.setdefault((tenant, name), _Share())

    def _more(self, key: Key, limit: int, count: Count, batch: int, read: Read) -> int:
        """Up to `batch` more, as many as the limit leaves; 0 if none."""
        for _ in range(_TRIES):
            item = read(key)
            bound, recent = self._read(item.body if item else None)
            if item is None or bound + sum(recent.values()) >= limit:
                bound = count(limit + 1)
            granted = min(batch, limit - bound - sum(recent.values()))
            if granted <= 0:
                return 0
            second = str(self._clock_ms() // 1000)
            taken: dict[str, JsonValue] = {**recent, second: recent.get(second, 0) + granted}
            try:
                self._items.write_relaxed(
                    [Put(key, {"bound": bound, "taken": taken}, item.version if item else 0)]
                )
            except ConditionFailed:
                continue
            return granted
        raise Unavailable("this tenant's counters are changing too fast; try again")

    def _read(self, body: Mapping[str, JsonValue] | None) -> tuple[int, dict[str, int]]:
        """The bound of what must be there by now if it ever will, and what was taken since, by second."""
        if body is None:
            return 0, {}
        taken = cast("dict[str, int]", body["taken"])
        oldest_s = self._clock_ms() / 1000 - OUTSTANDING_S - 1
        recent = {second: units for second, units in taken.items() if int(second) >= oldest_s}
        return cast(int, body["bound"]) + sum(taken.values()) - sum(recent.values()), recent
