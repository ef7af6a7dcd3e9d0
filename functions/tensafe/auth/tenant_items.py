"""What is kept about a tenant's limits: a few small items side by side, so that one query reads them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tensafe.storage.ports import Item, Items, Key

_ITEMS_MAX: Final = 16
Read = Callable[[Key], Item | None]
"""As `Items.get`."""


def tenant_item(tenant: str, sort: str) -> Key:
    """One of the tenant's items."""
    return Key(_partition(tenant), sort)


class ReadTogether:
    """Reads a tenant's items for one admission: all of them with the first, and each again on its own.

    Whatever is written by what was read is written on condition that it still is the same version.
    """

    def __init__(self, items: Items, tenant: str) -> None:
        self._items = items
        self._partition = _partition(tenant)
        self._unread: dict[Key, Item] | None = None
        self._read: set[Key] = set()

    def get(self, key: Key) -> Item | None:
        """As `Items.get`; the first time for each key, as it was when the first of all was read."""
        if key in self._read or key.partition != self._partition:
            return self._items.get(key)
        if self._unread is None:
            found = self._items.query(self._partition, limit=_ITEMS_MAX)
            self._unread = {item.key: item for item in found}
        self._read.add(key)
        return self._unread.get(key)


def _partition(tenant: str) -> str:
    return f"tenant/{tenant}/limits"
