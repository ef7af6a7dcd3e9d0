"""How many requests of one tenant wait for results at once: the rest is refused, and takes nobody's room.

A request that waits holds a connection, and on AWS an execution of the API's function, for up to 20 s. There
each waits in a process of its own, so the places of a tenant are an item that all of them write, once to take
a place and once to give it back. What has ended already needs no place.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol, cast

from tensafe.auth.tenant_items import tenant_item
from tensafe.contracts.errors import TensafeError, TooManyRequests
from tensafe.operations.streams import now_ms
from tensafe.storage.ports import ConditionFailed, Items, JsonValue, Put

log = logging.getLogger(__name__)

PLACE_S: Final = 32.0
"""After so long a place is free again though nobody gave it back: a function is ended after 28 s
(`template.yaml`), and clocks may differ by some seconds."""
_TRIES: Final = 16
_PAUSE_S: Final = 0.02
"""Between tries at most, so that those that come at the same moment do not go on meeting."""


class Waits(Protocol):
    """The places of tenants."""

    def begin(self, tenant: str) -> str:
        """Take a place; what it is called. Raises TooManyRequests if all are taken, Unavailable."""

    def end(self, tenant: str, place: str) -> None:
        """Give it back. Never raises TensafeError."""


class ProcessWaits:
    """Where one process answers all requests. For one thread alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()

    def begin(self, tenant: str) -> str:
        """Take a place."""
        if self._taken[tenant] >= self._limit:
            raise _refusal(self._limit)
        self._taken[tenant] += 1
        return ""

    def end(self, tenant: str, place: str) -> None:
        """Give it back."""
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]


class SharedWaits:
    """Across processes: a place is a name in the tenant's item, with the time at which it is free again.

    At most `limit` are taken, exactly, whoever dies with one. Where too many come at the same moment some are
    refused though there would be room.
    """

    def __init__(
        self,
        items: Items,
        limit: int,
        *,
        clock_ms: Callable[[], int] = now_ms,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._items, self._sleep = items, sleep
        self._limit = limit
        self._clock_ms = clock_ms

    def begin(self, tenant: str) -> str:
        """Take a place: a read and a write, more if others write too."""
        place = secrets.token_hex(4)

        def taking(places: dict[str, int]) -> dict[str, int]:
            if len(places) >= self._limit:
                raise _refusal(self._limit)
            return {**places, place: self._clock_ms() + int(PLACE_S * 1000)}

        if not self._change(tenant, taking):
            raise _refusal(self._limit)
        return place

    def end(self, tenant: str, place: str) -> None:
        """Give it back, or leave it to its time."""

        def leaving(places: dict[str, int]) -> dict[str, int]:
            return {name: ends_ms for name, ends_ms in places.items() if name != place}

        try:
            failure = None if self._change(tenant, leaving) else "ConditionFailed"
        except TensafeError as error:
            failure = type(error).__name__
        if failure is not None:
            log.warning("a place of those that wait is not given back", extra={"error": failure})

    def _change(self, tenant: str, change: Callable[[dict[str, int]], dict[str, int]]) -> bool:
        """Whether it was written; False if others wrote each time."""
        key = tenant_item(tenant, "waits")
        for number in range(_TRIES):
            if number:
                self._sleep(random.uniform(0, _PAUSE_S))  # noqa: S311 - spreads load, keeps no secret
            item = self._items.get(key)
            now = self._clock_ms()
            taken = cast("dict[str, int]", item.body["places"]) if item else {}
            there = change({name: ends_ms for name, ends_ms in taken.items() if ends_ms > now})
            body: dict[str, JsonValue] = {"places": dict(there)}
            try:
                self._items.write_relaxed([Put(key, body, item.version if item else 0)])
            except ConditionFailed:
                continue
            return True
        return False


def _refusal(limit: int) -> TooManyRequests:
    return TooManyRequests(f"this tenant waits for {limit} results at once; ask for fewer at a time")
