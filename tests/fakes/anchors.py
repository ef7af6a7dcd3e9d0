"""Anchors that are lost with the object."""

from __future__ import annotations

import threading

from tensafe.contracts.errors import InvalidRequest
from tensafe.storage.anchors import Mark
from tensafe.storage.ports import ConditionFailed


class MemoryAnchors:
    """Implements `Anchors`."""

    def __init__(self) -> None:
        self.marks: dict[str, Mark] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Mark | None:
        return self.marks.get(name)

    def put(self, mark: Mark, *, after: Mark | None) -> None:
        if after is not None and (after.name != mark.name or mark.position < after.position):
            raise InvalidRequest("an anchor never goes back")
        with self._lock:
            if self.marks.get(mark.name) != after:
                raise ConditionFailed("the anchor has moved", index=0)
            self.marks[mark.name] = mark

    def all(self) -> list[Mark]:
        return sorted(self.marks.values(), key=lambda mark: mark.name)
