"""Where private adapters are held: one per path, found by path, tenant and the holder's own name."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from tensafe.contracts.errors import Conflict, InvalidRequest, NotFound
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.operations.placements import Placement, Placements
from tensafe.storage.ports import Item, Key
from tests.fakes.items import MemoryItems

ONE = Placement(
    "s:train:0", "mine", "acme", "base", ExecutionPolicy.HE_REQUIRED, "unix:/a", "art-1", 1, "sampler", 7
)


@pytest.fixture
def placements() -> Placements:
    return Placements(MemoryItems(), clock_ms=lambda: 7)


def test_a_placement_is_found_by_everything_that_names_it(placements: Placements) -> None:
    other = replace(ONE, name="other", adapter="art-2", version=12)
    assert placements.add(ONE) == ONE
    assert placements.add(other) == other
    assert placements.find("s:train:0", "mine") == ONE
    assert ONE.path == "tinker://s:train:0/sampler_weights/mine"
    assert placements.of_tenant("acme") == [ONE, other]
    assert placements.of_tenant("b") == []
    assert placements.holds("art-1", "1")
    assert not placements.holds("art-1", "2")
    assert not placements.holds("art-2", "1")  # only 12
    placements.remove(ONE)
    placements.remove(ONE)
    assert placements.peek("s:train:0", "mine") is None
    assert not placements.holds("art-1", "1")
    with pytest.raises(NotFound):
        placements.find("s:train:0", "mine")


def test_adding_again_is_the_same_and_another_is_a_conflict(placements: Placements) -> None:
    assert placements.add(ONE) == placements.add(replace(ONE, created_ms=9)) == ONE
    with pytest.raises(Conflict):
        placements.add(replace(ONE, adapter="art-2"))


@pytest.mark.parametrize("address", ["/a", "unix:", "unix:relative/s", "tcp:localhost", "tcp:h:https"])
def test_an_address_that_is_none_is_not_placed_and_what_an_older_release_placed_is_read(
    placements: Placements, address: str
) -> None:
    with pytest.raises(InvalidRequest, match="unix:") as it:
        placements.add(replace(ONE, address=address))
    assert it.value.field == "holder"
    assert placements.of_tenant("acme") == []
    item = Item(Key("p", "s"), 1, asdict(replace(ONE, address=address)))
    assert Placement.from_item(item).address == address


def test_it_is_held_elsewhere_with_the_same_weights(placements: Placements) -> None:
    placed = placements.renew(placements.add(ONE), epoch=2, digest="d2")
    moved = placements.move(placed, "tcp:h:1")
    assert moved == replace(placed, address="tcp:h:1") == placements.find("s:train:0", "mine")
    assert placements.move(moved, "tcp:h:1") == placements.move(placed, "tcp:h:1") == moved
    assert placements.holds("art-1", "1")
    with pytest.raises(InvalidRequest):
        placements.move(moved, "tcp:h")
    with pytest.raises(Conflict, match="meanwhile"):
        placements.move(placed, "unix:/b")
    with pytest.raises(Conflict, match="meanwhile"):
        placements.renew(placed, epoch=3, digest="d3")
    assert placements.find("s:train:0", "mine") == moved
    placements.remove(ONE)
    with pytest.raises(NotFound):
        placements.move(moved, "unix:/b")


def test_another_epoch_is_taken_over_from_what_was_known(placements: Placements) -> None:
    placements.add(ONE)
    first = placements.renew(ONE, epoch=1, digest="d1")  # an older release placed it without
    assert placements.find("s:train:0", "mine") == first == replace(ONE, epoch=1, digest="d1")
    assert placements.renew(first, epoch=2, digest="d2").digest == "d2"
    with pytest.raises(Conflict):
        placements.renew(first, epoch=2, digest="other")
    assert placements.find("s:train:0", "mine").digest == "d2"
    placements.remove(ONE)
    with pytest.raises(NotFound):
        placements.renew(first, epoch=3, digest="d3")
