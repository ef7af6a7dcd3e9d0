"""Parts of what an operation has produced so far."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensafe.operations.progress import PART_TTL_S
from tensafe.operations.records import OpKind
from tensafe.storage.ports import ConditionFailed
from tests.unit.operations.world import World


def test_parts_are_read_in_order_from_any_of_them_on_and_expire() -> None:
    world = World()
    sampler = world.sampler()
    operation = world.services.outcomes.start(world.submit(sampler, 1, kind=OpKind.TEXT), ())
    progress = world.services.progress
    for number in range(3):
        progress.add(sampler, operation, number, b"part %d" % number)
    assert progress.since(sampler, operation, 0) == [b"part 0", b"part 1", b"part 2"]
    assert progress.since(sampler, operation, 2) == [b"part 2"]
    assert progress.since(sampler, operation, 3) == []
    assert not any(b"part" in item.sealed for item in world.partition("stream/" + sampler.stream_id))
    with pytest.raises(ConditionFailed):
        progress.add(sampler, operation, 1, b"other")
    world.later(PART_TTL_S + 1)
    assert progress.since(sampler, operation, 0) == []


def test_one_try_does_not_see_the_parts_of_another_and_a_gap_ends_the_reading() -> None:
    world = World()
    sampler = world.sampler()
    operation = world.services.outcomes.start(world.submit(sampler, 1, kind=OpKind.TEXT), ())
    world.services.progress.add(sampler, operation, 0, b"first try")
    again = replace(operation, tries=operation.tries + 1)
    assert world.services.progress.since(sampler, again, 0) == []
    world.services.progress.add(sampler, again, 1, b"early")
    assert world.services.progress.since(sampler, again, 0) == []
