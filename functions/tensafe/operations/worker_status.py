"""Which workers are alive: announced by themselves, expiring by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from tensafe.metrics.counters import from_json, to_json
from tensafe.metrics.port import Series
from tensafe.operations.records import Operation, OpState
from tensafe.storage.ports import ConditionFailed, Delete, Items, JsonValue, Key, Put

Role = Literal["trainer", "sampler"]
_PARTITION: Final = "workers"
TTL_S: Final = 30


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker that said it was ready less than 30 s ago."""

    role: str
    base_model: str
    owner: str
    since_s: int
    series: tuple[Series, ...] = ()
    """What it has counted since it began, as of its last announcement."""


class WorkerStatus:
    """Announces and lists workers; what `/readyz` and the supervisor look at."""

    def __init__(self, items: Items, *, clock: Callable[[], float] = time.time) -> None:
        self._items = items
        self._clock = clock

    def announce(
        self, role: Role, base_model: str, owner: str, since_s: int, series: Sequence[Series] = ()
    ) -> None:
        """Say that this worker can take work, and what it has counted; repeat within 30 s."""
        key = Key(_PARTITION, owner)
        item = self._items.get(key)
        body: dict[str, JsonValue] = {"role": role, "base_model": base_model, "since_s": since_s}
        if series:
            body["series"] = cast(JsonValue, to_json(series))
        try:
            self._items.write(
                [
                    Put(
                        key,
                        body,
                        item.version if item else 0,
                        expires_at_s=int(self._clock()) + TTL_S,
                    )
                ]
            )
        except ConditionFailed:
            return  # the supervisor removed us as dead; the next announcement settles it

    def withdraw(self, owner: str) -> None:
        """This worker is gone."""
        self._items.write([Delete(Key(_PARTITION, owner), None)])

    def running(self, operation: Operation) -> bool:
        """Whether a worker that is alive runs the operation."""
        if operation.state is not OpState.RUNNING or not operation.owner:
            return False
        return self._items.get(Key(_PARTITION, operation.owner)) is not None

    def list(self) -> list[WorkerReport]:
        """Workers that are alive."""
        return [
            WorkerReport(
                str(item.body["role"]),
                str(item.body["base_model"]),
                item.key.sort,
                cast(int, item.body["since_s"]),
                tuple(from_json(cast("list[object]", item.body.get("series") or []))),
            )
            for item in self._items.query(_PARTITION, limit=1000)
        ]
