"""The order in which a sampling session's operations ended, for `retrieve_futures` cursors.

A cursor is the count of completions so far, kept in one item per (session, clone) and advanced in the
same transaction that closes the operation: a reader that has seen cursor n can never miss n + 1.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from tensafe.contracts.errors import InvalidRequest, Unavailable
from tensafe.operations import layout
from tensafe.operations.records import Operation
from tensafe.storage.ports import TRANSACTION_MAX_WRITES, ConditionFailed, Items, Key, Put, Write

CLONE_STRIDE: Final = 1_000_000_000
"""A cloned SamplingClient numbers its requests from clone x 10^9 (SDK 0.38, sampling sessions)."""
_RETRIES: Final = 50
_COUNTERS_KEPT: Final = 4096
_FIRST_WAIT_S: Final = 0.001
_LONGEST_WAIT_S: Final = 0.25


class Crowded(Unavailable):
    """So many operations of the session end at once that this one was never next; nothing was applied."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One ended operation of a sampling session."""

    cursor: int
    seq: int


@dataclass(frozen=True, slots=True)
class _Counter:
    """An item's version (0: absent) and the completions that it counts."""

    version: int
    count: int


@dataclass(slots=True, eq=False)
class _Ending:
    """An operation on its way into the order, with what is written when it gets there."""

    done: Operation
    writes: Sequence[Write]
    expires_s: int | None
    settled: bool = False
    error: BaseException | None = None

    @property
    def size(self) -> int:
        """Writes, with the counter and the entry."""
        return len(self.writes) + 2

    def settle(self, error: BaseException | None = None) -> None:
        if not self.settled:
            self.settled, self.error = True, error


class Completions:
    """Gives ended operations their place in the order.

    Those that end at the same time in one process share a transaction: they would all want the same
    counter, and only one of them could have it. A counter that this process advanced is not read again
    until somebody else has advanced it too. Thread-safe.
    """

    def __init__(self, items: Items) -> None:
        self._items = items
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._waiting: deque[_Ending] = deque()
        self._counters: OrderedDict[Key, _Counter] = OrderedDict()
        """As this process left them; read and changed in turn alone."""

    def close(self, done: Operation, writes: Sequence[Write], *, expires_s: int | None = None) -> None:
        """Apply `writes` together with the next completion, which is listed until `expires_s` (Unix seconds).

        Raises ConditionFailed (nothing applied; `index` counts in `writes`) or Crowded (nothing applied).
        """
        ending = _Ending(done, writes, expires_s)
        with self._guard:
            self._waiting.append(ending)
        with self._turn:  # whoever gets here first ends all that wait
            while not ending.settled:
                self._end(self._next_batch())
        if ending.error is not None:
            raise ending.error

    def _next_batch(self) -> list[_Ending]:
        with self._guard:
            batch = [self._waiting.popleft()]
            room = TRANSACTION_MAX_WRITES - batch[0].size
            while self._waiting and self._waiting[0].size <= room:
                batch.append(self._waiting.popleft())
                room -= batch[-1].size
        return batch

    def _end(self, batch: Sequence[_Ending]) -> None:
        """Settle all of the batch, together if it can be."""
        try:
            self._end_together(batch)
        except InvalidRequest as error:
            # Too many bytes for one transaction, say, or a condition that two of them share.
            for ending in batch:
                if len(batch) == 1:
                    ending.settle(error)
                else:
                    self._end([ending])
        except Exception as error:  # noqa: BLE001 - raised in the threads whose ends these are
            for ending in batch:
                ending.settle(error)
        finally:
            for ending in batch:  # an interrupt (Ctrl-C) came between
                ending.settle(Unavailable("the write was interrupted; try again"))

    def _end_together(self, batch: Sequence[_Ending]) -> None:
        attempt = 0
        while open_ := [ending for ending in batch if not ending.settled]:
            counters, places = self._places(open_)
            owners = [None] * len(places) + [(e, i) for e in open_ for i in range(len(e.writes))]
            for key in counters:  # whatever comes of it: only what was surely written is known
                self._counters.pop(key, None)
            try:
                self._items.write([*places, *(write for ending in open_ for write in ending.writes)])
            except ConditionFailed as error:
                if (owner := owners[error.index]) is not None:
                    owner[0].settle(ConditionFailed(error.message, index=owner[1]))
                    continue
            else:
                self._remember(counters)
                for ending in open_:
                    ending.settle()
                return
            if (attempt := attempt + 1) >= _RETRIES:
                raise Crowded("too many operations of this session end at once; try again")
            time.sleep(_wait_s(attempt - 1))

    def _remember(self, counters: Mapping[Key, _Counter]) -> None:
        self._counters.update(counters)
        while len(self._counters) > _COUNTERS_KEPT:
            self._counters.popitem(last=False)

    def _counter(self, key: Key) -> _Counter:
        known = self._counters.get(key)
        if known is not None:
            return known
        item = self._items.get(key)
        return _Counter(item.version, cast(int, item.body["count"])) if item else _Counter(0, 0)

    def _places(self, endings: Sequence[_Ending]) -> tuple[dict[Key, _Counter], list[Put]]:
        """Every counter that they advance, as it will be; and the writes: of those, and an entry for each."""
        before: dict[Key, _Counter] = {}
        counts: dict[Key, int] = {}
        entries: list[Put] = []
        for ending in endings:
            partition = layout.stream_partition(ending.done.stream_id)
            clone = ending.done.seq // CLONE_STRIDE
            counter = Key(partition, f"completions/{clone:010d}")
            if counter not in counts:
                before[counter] = self._counter(counter)
                counts[counter] = before[counter].count
            counts[counter] += 1
            entry = Key(partition, layout.done_sort(clone, counts[counter]))
            entries.append(Put(entry, {"seq": ending.done.seq}, 0, expires_at_s=ending.expires_s))
        advanced = [Put(key, {"count": count}, before[key].version) for key, count in counts.items()]
        after = {key: _Counter(before[key].version + 1, count) for key, count in counts.items()}
        return after, [*advanced, *entries]


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
