"""Who may be connected at once: peers that have shown nothing yet, and greeted ones of each tenant.

Whoever connects costs a place before it is known who it is. So these places are taken away again: from the
source that has most of them, the oldest first. A peer that greets keeps its own place for moments; one that
says nothing keeps none from it.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Final

from tensafe_gpu.helora.ports import HOLDER_ABSENT, HeUnavailable

MAX_SILENT: Final = 512
"""Peers that have not sent a byte; each costs a file descriptor."""
MAX_GREETING: Final = 64
"""Peers in the TLS handshake or in HELLO; each costs a thread."""
MAX_GREETED: Final = 128
MAX_OF_TENANT: Final = 64
"""A sampler has two connections for each adapter."""


@dataclass(eq=False, slots=True)
class Visitor:
    """A peer that is not known yet. `deadline` (time.monotonic): by then it has to have greeted."""

    sock: socket.socket
    """Once there is TLS over it, that."""
    source: str
    """Its host; all of a unix socket are one."""
    deadline: float


class Waiting:
    """Visitors in the order in which they came, at most so many. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._visitors: dict[Visitor, None] = {}
        self._of_source: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, visitor: Visitor) -> Visitor | None:
        """Take it in; whoever has to leave for it."""
        with self._lock:
            out = self._turned_away() if len(self._visitors) >= self._most else None
            self._visitors[visitor] = None
            self._of_source[visitor.source] += 1
            return out

    def leave(self, visitor: Visitor) -> bool:
        """Whether it was still in."""
        with self._lock:
            return self._left(visitor)

    def turn_away(self) -> Visitor | None:
        """One leaves, without another one coming; None if nobody is in."""
        with self._lock:
            return self._turned_away()

    def oldest(self) -> Visitor | None:
        """Whoever came first."""
        with self._lock:
            return next(iter(self._visitors), None)

    def _turned_away(self) -> Visitor | None:
        most = max(self._of_source.values(), default=0)
        found = next((one for one in self._visitors if self._of_source[one.source] == most), None)
        if found is not None:
            self._left(found)
        return found

    def _left(self, visitor: Visitor) -> bool:
        if visitor not in self._visitors:
            return False
        del self._visitors[visitor]
        self._of_source[visitor.source] -= 1
        if not self._of_source[visitor.source]:
            del self._of_source[visitor.source]
        return True


class Places:
    """Greeted connections; no tenant can have all. Thread-safe."""

    def __init__(self) -> None:
        self._of_tenant: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, tenant: str) -> None:
        """`give_back` it. Raises HeUnavailable: none is left, or none for this tenant."""
        with self._lock:
            if self._of_tenant[tenant] >= MAX_OF_TENANT:
                raise HeUnavailable(
                    HOLDER_ABSENT, f"{MAX_OF_TENANT} connections of this tenant stand; end one first"
                )
            if self._of_tenant.total() >= MAX_GREETED:
                raise HeUnavailable(HOLDER_ABSENT, "no place is left at this adapter holder")
            self._of_tenant[tenant] += 1

    def give_back(self, tenant: str) -> None:
        """A place that was taken."""
        with self._lock:
            self._of_tenant[tenant] -= 1
            if not self._of_tenant[tenant]:
                del self._of_tenant[tenant]
