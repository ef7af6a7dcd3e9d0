"""The order in which a sampling session's operations ended, for `retrieve_futures` cursors.

A cursor is the count of completions so far, kept in one item per (session, clone) and advanced in the
same transaction that closes the operation: a reader that has seen cursor n can never miss n + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from tensafe.contracts.errors import Unavailable
from tensafe.operations import layout
from tensafe.operations.records import Operation
from tensafe.storage.ports import ConditionFailed, Items, Key, Put, Write

CLONE_STRIDE: Final = 1_000_000_000
"""A cloned SamplingClient numbers its requests from clone x 10^9 (SDK 0.38, sampling sessions)."""
_RETRIES: Final = 50


class Crowded(Unavailable):
    """So many operations of the session end at once that this one was never next; nothing was applied."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One ended operation of a sampling session."""

    cursor: int
    seq: int


def close(items: Items, done: Operation, writes: Sequence[Write]) -> None:
    """Apply `writes` together with the next completion.

    Raises ConditionFailed (nothing applied; `index` counts in `writes`) or Crowded (nothing applied).
    """
    clone = done.seq // CLONE_STRIDE
    counter = Key(layout.stream_partition(done.stream_id), f"completions/{clone:010d}")
    for _ in range(_RETRIES):
        item = items.get(counter)
        count = cast(int, item.body["count"]) + 1 if item else 1
        entry = Key(layout.stream_partition(done.stream_id), layout.done_sort(clone, count))
        try:
            items.write(
                [
                    Put(counter, {"count": count}, item.version if item else 0),
                    Put(entry, {"seq": done.seq}, 0),
                    *writes,
                ]
            )
            return
        except ConditionFailed as error:
            if error.index > 1:
                raise ConditionFailed(error.message, index=error.index - 2) from error
    raise Crowded("too many operations of this session end at once; try again")


def since(items: Items, stream_id: str, clone: int, cursor: int, *, limit: int = 1000) -> list[Completion]:
    """Completions after `cursor`, in order."""
    found = items.query(
        layout.stream_partition(stream_id),
        first=layout.done_sort(clone, cursor + 1),
        last=layout.done_sort(clone, layout.SEQ_MAX),
        limit=limit,
    )
    return [Completion(int(item.key.sort.rsplit("/", 1)[1]), cast(int, item.body["seq"])) for item in found]
