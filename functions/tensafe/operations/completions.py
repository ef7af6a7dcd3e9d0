"""The order in which a sampling session's operations ended, for `retrieve_futures` cursors.

A cursor is the count of completions so far, kept in one item per (session, clone) and advanced in the
same transaction that closes the operation: a reader that has seen cursor n can never miss n + 1.
"""

from __future__ import annotations

import random
import time
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
_FIRST_WAIT_S: Final = 0.001
_LONGEST_WAIT_S: Final = 0.25


class Crowded(Unavailable):
    """So many operations of the session end at once that this one was never next; nothing was applied."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One ended operation of a sampling session."""

    cursor: int
    seq: int


def close(items: Items, done: Operation, writes: Sequence[Write], *, expires_s: int | None = None) -> None:
    """Apply `writes` together with the next completion, which is listed until `expires_s` (Unix seconds).

    Raises ConditionFailed (nothing applied; `index` counts in `writes`) or Crowded (nothing applied).
    """
    clone = done.seq // CLONE_STRIDE
    counter = Key(layout.stream_partition(done.stream_id), f"completions/{clone:010d}")
    for attempt in range(_RETRIES):
        item = items.get(counter)
        count = cast(int, item.body["count"]) + 1 if item else 1
        entry = Key(layout.stream_partition(done.stream_id), layout.done_sort(clone, count))
        try:
            items.write(
                [
                    Put(counter, {"count": count}, item.version if item else 0),
                    Put(entry, {"seq": done.seq}, 0, expires_at_s=expires_s),
                    *writes,
                ]
            )
            return
        except ConditionFailed as error:
            if error.index > 1:
                raise ConditionFailed(error.message, index=error.index - 2) from error
        time.sleep(_wait_s(attempt))
    raise Crowded("too many operations of this session end at once; try again")


def _wait_s(attempt: int) -> float:
    """At random up to a bound that doubles: those who lost together do not come back together."""
    longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt)
    return random.uniform(0, longest)  # noqa: S311 - spreads load, keeps no secret


def since(items: Items, stream_id: str, clone: int, cursor: int, *, limit: int = 1000) -> list[Completion]:
    """Completions after `cursor`, in order."""
    found = items.query(
        layout.stream_partition(stream_id),
        first=layout.done_sort(clone, cursor + 1),
        last=layout.done_sort(clone, layout.SEQ_MAX),
        limit=limit,
    )
    return [Completion(int(item.key.sort.rsplit("/", 1)[1]), cast(int, item.body["seq"])) for item in found]
