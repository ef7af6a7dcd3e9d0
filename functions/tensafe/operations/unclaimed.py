"""Blobs that are written before the transaction that names them: found again if it never comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tensafe.operations import layout
from tensafe.storage.ports import Delete, Item, Items, Key, Put, Write

GRACE_MS: Final = 86_400_000
"""How long a blob may wait for its transaction."""


class Announcement:
    """Called with a blob's key before it is written: leaves a note of the item that is to name it.

    A process that dies in between leaves the blob behind; `Retention` then finds the note.
    """

    def __init__(self, items: Items, holder: Key, clock_ms: Callable[[], int]) -> None:
        self._items = items
        self._holder = holder
        self._clock_ms = clock_ms
        self._notes: list[Key] = []

    def __call__(self, blob_key: str) -> None:
        note = layout.due_unclaimed(self._clock_ms() + GRACE_MS, blob_key)
        body = {"blob": blob_key, "partition": self._holder.partition, "sort": self._holder.sort}
        self._items.write([Put(note, {**body}, 0)])
        self._notes.append(note)

    @property
    def claiming(self) -> list[Write]:
        """Writes that drop the note; for the transaction that names the blob."""
        return [Delete(note, None) for note in self._notes]


def claimed(items: Items, note: Item) -> bool:
    """Whether the item of the note names its blob by now."""
    holder = items.get(Key(str(note.body["partition"]), str(note.body["sort"])))
    return holder is not None and holder.body.get("blob") == note.body["blob"]
