"""Blobs that are written before the transaction that names them: found again if it never comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tensafe.operations import layout
from tensafe.storage.ports import Item, Items, Key, Put

GRACE_MS: Final = 86_400_000
"""How long a blob may wait for its transaction."""


def announcing(items: Items, holder: Key, clock_ms: Callable[[], int]) -> Callable[[str], None]:
    """What to call with a blob's key before it is written: leaves a note of the item that is to name it.

    A process that dies in between leaves the blob behind; `Retention` then finds the note.
    """

    def announce(blob_key: str) -> None:
        body = {"blob": blob_key, "partition": holder.partition, "sort": holder.sort}
        items.write([Put(layout.due_unclaimed(clock_ms() + GRACE_MS, blob_key), {**body}, 0)])

    return announce


def claimed(items: Items, note: Item) -> bool:
    """Whether the item of the note names its blob by now."""
    holder = items.get(Key(str(note.body["partition"]), str(note.body["sort"])))
    return holder is not None and holder.body.get("blob") == note.body["blob"]
