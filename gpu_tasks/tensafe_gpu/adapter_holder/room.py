"""How much memory greeted peers may fill at once: frames that arrive, B that is sent, blocks that are begun.

A frame or a block is no larger than its adapter makes it, but a tenant has many connections. So all of them
share a room, of which one tenant fills no more than half: who comes beside a tenant that fills its half is
still served.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from tensafe_gpu.helora.ports import HOLDER_ABSENT, HeUnavailable

FRAMES_BYTES: Final = 512 << 20
"""Of frames larger than SMALL_BYTES, from their header to their answer."""
BLOCKS_BYTES: Final = 1 << 30
"""Of blocks, from BLOCK_BEGIN to BLOCK_REPLY."""
SMALL_BYTES: Final = 1 << 16
ROOM_S: Final = 20.0
"""How long preprocessing waits for room: others' blocks take seconds, and come to their end. Together
with what its frame waits it is less than the minute after which a key holder gives it up.
"""
LEFT_S: Final = 120.0
"""A block that was begun and gets no further for so long gives its room to others."""


class Room:
    """So many bytes, at most half of them a tenant's; one thing that is alone may be larger. Thread-safe."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._of_tenant: Counter[str] = Counter()
        self._changed = threading.Condition()

    def taken_bytes(self) -> int:
        """By all tenants."""
        with self._changed:
            return self._of_tenant.total()

    def take(self, tenant: str, size_bytes: int, wait_s: float = 0.0) -> None:
        """`give_back` it. Raises HeUnavailable if it is not there within `wait_s`."""
        deadline = time.monotonic() + wait_s
        with self._changed:
            while not self._fits(tenant, size_bytes):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise HeUnavailable(
                        HOLDER_ABSENT,
                        "other requests fill the adapter holder's memory; try again in a moment",
                    )
                self._changed.wait(left_s)
            self._of_tenant[tenant] += size_bytes

    def give_back(self, tenant: str, size_bytes: int) -> None:
        """What was taken."""
        with self._changed:
            self._of_tenant[tenant] -= size_bytes
            if not self._of_tenant[tenant]:
                del self._of_tenant[tenant]
            self._changed.notify_all()

    def _fits(self, tenant: str, size_bytes: int) -> bool:
        theirs, all_of_it = self._of_tenant[tenant], self._of_tenant.total()
        if not theirs:
            del self._of_tenant[tenant]
        return (not theirs or theirs + size_bytes <= self._most_bytes // 2) and (
            not all_of_it or all_of_it + size_bytes <= self._most_bytes
        )


@dataclass(frozen=True, slots=True)
class WhileWaiting:
    """What is done while a connection waits for room: every `look_s` `look` is called, which may raise."""

    look_s: float = inf
    look: Callable[[], None] = lambda: None


_NOTHING: Final = WhileWaiting()


class Share:
    """What one connection holds of a room. Not for several threads at once."""

    def __init__(self, room: Room, tenant: str) -> None:
        self._room, self._tenant, self._size_bytes = room, tenant, 0

    def take(self, size_bytes: int, wait_s: float = 0.0, waiting: WhileWaiting = _NOTHING) -> None:
        """In place of what it had. Raises HeUnavailable if there is none in time, and what a look raises."""
        self.give_back()
        if size_bytes <= SMALL_BYTES:
            return
        until = time.monotonic() + wait_s
        while True:
            left_s = max(0.0, until - time.monotonic())
            try:
                self._room.take(self._tenant, size_bytes, min(left_s, waiting.look_s))
                break
            except HeUnavailable:
                if not left_s:
                    raise
            waiting.look()
        self._size_bytes = size_bytes

    def give_back(self) -> None:
        """All of it; a second call does nothing."""
        if self._size_bytes:
            self._room.give_back(self._tenant, self._size_bytes)
            self._size_bytes = 0
