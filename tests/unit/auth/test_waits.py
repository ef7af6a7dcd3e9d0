"""Places of a tenant's requests that wait: in one process, and among many that share an item."""

from __future__ import annotations

import pytest

from tensafe.auth.waits import PLACE_S, ProcessWaits, SharedWaits, Waits
from tensafe.contracts.errors import TooManyRequests, Unavailable
from tensafe.storage.ports import ConditionFailed, Item, Key
from tests.fakes import MemoryItems
from tests.support.templates import CORE, read_template
from tests.unit.auth.test_limits import Clock
from tests.unit.operations.world import TENANT


def shared(items: MemoryItems, clock: Clock, limit: int = 2) -> SharedWaits:
    return SharedWaits(items, limit, clock_ms=clock)


@pytest.mark.parametrize("waits", [ProcessWaits(2), shared(MemoryItems(), Clock())], ids=["one", "shared"])
def test_a_tenant_has_so_many_places_and_another_one_has_its_own(waits: Waits) -> None:
    first = waits.begin(TENANT)
    waits.begin(TENANT)
    with pytest.raises(TooManyRequests, match="waits for 2 results"):
        waits.begin(TENANT)
    waits.begin("another")
    waits.end(TENANT, first)
    waits.begin(TENANT)
    with pytest.raises(TooManyRequests):
        waits.begin(TENANT)


def test_processes_share_them() -> None:
    items, clock = MemoryItems(), Clock()
    one, other = shared(items, clock), shared(items, clock)
    place = one.begin(TENANT)
    other.begin(TENANT)
    with pytest.raises(TooManyRequests):
        other.begin(TENANT)
    one.end(TENANT, place)
    one.end(TENANT, place)  # once more: nobody else's
    other.begin(TENANT)
    with pytest.raises(TooManyRequests):
        one.begin(TENANT)


def test_who_dies_with_a_place_keeps_it_for_a_while_and_no_longer() -> None:
    items, clock = MemoryItems(), Clock()
    for _ in range(2):
        shared(items, clock).begin(TENANT)
    clock.ms += int(PLACE_S * 1000) - 1
    with pytest.raises(TooManyRequests):
        shared(items, clock).begin(TENANT)
    clock.ms += 1
    shared(items, clock).begin(TENANT)


def test_a_place_lasts_longer_than_a_function_may_run() -> None:
    function = read_template(CORE)["Resources"]["ApiFunction"]["Properties"]
    assert function["Timeout"] + 3 <= PLACE_S


def test_a_place_that_cannot_be_given_back_fails_nobody() -> None:
    items, clock = MemoryItems(), Clock()
    waits = shared(items, clock)
    place = waits.begin(TENANT)

    def down(_: object) -> None:
        raise Unavailable("no")

    items.write_relaxed = down  # type: ignore[method-assign, assignment]
    waits.end(TENANT, place)
    with pytest.raises(Unavailable):
        waits.begin(TENANT)


class Contended(MemoryItems):
    """Somebody else writes each time between a read and a write."""

    def write_relaxed(self, writes: object) -> None:  # type: ignore[override]
        raise ConditionFailed(Key("x", "x"), index=0)

    def get(self, key: Key) -> Item | None:
        return None


def test_where_all_write_at_once_one_is_refused_and_does_not_hang() -> None:
    waits = shared(Contended(), Clock())
    with pytest.raises(TooManyRequests):
        waits.begin(TENANT)
    waits.end(TENANT, "x")
