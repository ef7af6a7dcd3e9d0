"""Items in a dictionary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tensafe.storage.checks import check_keys, check_query, check_writes, decode_body
from tensafe.storage.ports import Check, ConditionFailed, Delete, Item, Key, Put, Write


@dataclass(frozen=True)
class _Stored:
    item: Item
    text: str

    def copy(self) -> Item:
        return replace(self.item, body=decode_body(self.text))


class MemoryItems:
    """Implements `Items`; `clock` gives Unix seconds and may be moved by a test."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._stored: dict[Key, _Stored] = {}

    def get(self, key: Key) -> Item | None:
        with self._lock:
            stored = self._live(key)
            return None if stored is None else stored.copy()

    def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        check_keys(keys)
        return [self.get(key) for key in keys]

    def query(
        self,
        partition: str,
        *,
        first: str = "",
        last: str | None = None,
        limit: int = 100,
        descending: bool = False,
    ) -> list[Item]:
        check_query(partition, first, last, limit)
        with self._lock:
            inside = [
                key
                for key in self._stored
                if key.partition == partition
                and first.encode() <= key.sort.encode()
                and (last is None or key.sort.encode() <= last.encode())
            ]
            inside.sort(key=lambda key: key.sort.encode(), reverse=descending)
            found = [stored.copy() for key in inside if (stored := self._live(key)) is not None]
            return found[:limit]

    def write(self, writes: Sequence[Write]) -> None:
        checked = check_writes(writes)
        with self._lock:
            for index, (write, _) in enumerate(checked):
                stored = self._live(write.key)
                version = 0 if stored is None else stored.item.version
                if write.if_version is not None and write.if_version != version:
                    raise ConditionFailed(f"write {index} found version {version}", index=index)
            for write, text in checked:
                self._apply(write, text)

    def write_relaxed(self, writes: Sequence[Write]) -> None:
        self.write(writes)

    def all(self) -> list[Item]:
        """Everything that is stored."""
        with self._lock:
            return [stored.copy() for stored in self._stored.values()]

    def place(self, put: Put, text: str) -> None:
        """Store an item as it is elsewhere: on no condition."""
        with self._lock:
            self._apply(put, text)

    def _apply(self, write: Write, text: str) -> None:
        match write:
            case Put():
                item = Item(write.key, write.if_version + 1, {}, bytes(write.sealed), write.expires_at_s)
                self._stored[write.key] = _Stored(item, text)
            case Delete():
                self._stored.pop(write.key, None)
            case Check():
                pass

    def _live(self, key: Key) -> _Stored | None:
        stored = self._stored.get(key)
        if stored is None:
            return None
        expires_at_s = stored.item.expires_at_s
        return None if expires_at_s is not None and expires_at_s <= self._clock() else stored
