"""The anchor port: how far something has come, remembered outside the store that holds it.

A store that is put back to an older copy is consistent in itself. Only what is kept elsewhere can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tensafe.storage.ports import JsonValue


@dataclass(frozen=True, slots=True)
class Mark:
    """`name` had come as far as `position`; `body` says what stood there."""

    name: str
    position: int
    body: Mapping[str, JsonValue]


class Anchors(Protocol):
    """One mark per name, shared by processes, kept where no backup of the items reaches."""

    def get(self, name: str) -> Mark | None:
        """The mark, or None if this name never had one. Raises IntegrityError if it is damaged."""

    def put(self, mark: Mark, *, after: Mark | None) -> None:
        """Replace `after`, durably once this returns. The position never falls.

        Raises ConditionFailed if the present mark is not `after`, InvalidRequest for a position that
        falls, Unavailable.
        """

    def all(self) -> list[Mark]:
        """Every mark, in order of name."""
