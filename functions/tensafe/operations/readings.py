"""Numbers that are read off the store when somebody asks: how long work waits, what lies where."""

from __future__ import annotations

from tensafe.operations import layout
from tensafe.storage.ports import Items


def oldest_operation_age_s(items: Items, now_ms: int) -> float:
    """Seconds since the oldest operation that has not ended was submitted; 0 if there is none."""
    pages = (items.query(shard, limit=1) for shard in layout.pending_shards())
    begun = [int(page[0].key.sort.split("/", 1)[0]) for page in pages if page]
    return max(0.0, (now_ms - min(begun)) / 1000) if begun else 0.0
