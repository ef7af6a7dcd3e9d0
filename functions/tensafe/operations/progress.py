"""What an operation has produced so far, for whoever watches it: sealed parts that expire.

Parts are a convenience and no result. A worker that takes the operation over begins again under its own
try, so a reader that follows one try never mixes two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tensafe.operations import layout
from tensafe.operations.records import Operation, StreamRecord
from tensafe.operations.streams import Stores, now_ms
from tensafe.storage.ports import Key, Put

PART_TTL_S: Final = 3600
MAX_PARTS: Final = 10_000
_PAGE: Final = 100


class Progress:
    """Written by the worker that runs the operation, read by the edge."""

    def __init__(self, stores: Stores, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._items = stores.items
        self._vault = stores.vault
        self._clock_ms = clock_ms

    def add(self, stream: StreamRecord, operation: Operation, number: int, data: bytes) -> None:
        """Store part `number` (from 0) of the present try. Raises ConditionFailed if it is there."""
        sealed = self._vault.seal(stream.scope, _part(operation, number), data)
        expires_s = self._clock_ms() // 1000 + PART_TTL_S
        # Nothing is promised by a part, so a power cut may take it.
        self._items.write_relaxed(
            [Put(_key(operation, number), {}, 0, sealed=sealed, expires_at_s=expires_s)]
        )

    def since(self, stream: StreamRecord, operation: Operation, number: int) -> list[bytes]:
        """The parts of the operation's present try from `number` on, in order, at most a hundred."""
        first = _key(operation, number)
        last = _key(operation, MAX_PARTS).sort
        items = self._items.query(first.partition, first=first.sort, last=last, limit=_PAGE)
        parts = []
        for offset, item in enumerate(items):
            if item.key != _key(operation, number + offset):
                break  # the one between is still on its way
            parts.append(self._vault.open(stream.scope, _part(operation, number + offset), item.sealed))
        return parts


def _key(operation: Operation, number: int) -> Key:
    return layout.part_item(operation.stream_id, operation.seq, operation.tries, number)


def _part(operation: Operation, number: int) -> str:
    return f"op/{operation.seq}/{operation.kind.value}/part/{operation.tries}/{number}"
