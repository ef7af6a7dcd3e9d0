"""The scheduled function ends in its time, whatever waits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tensafe.lambdas.sweeper import sweeping
from tests.unit.operations.world import TRAIN, World


@dataclass
class Context:
    """What Lambda says of the event's time."""

    left_ms: int

    def get_remaining_time_in_millis(self) -> int:
        return self.left_ms


@pytest.mark.parametrize(("left_s", "rings"), [(60, 10), (25, 4), (10, 0)])
def test_the_sweep_leaves_time_for_what_comes_after_it(
    left_s: int, rings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at a marker takes a second."""
    world = World()
    for number in range(10):
        world.submit(world.run(f"s:train:{number}"), 1)
    run = world.stream("s:train:0")
    world.checkpoint(run, "brief", ttl_s=1)
    world.drain(TRAIN)
    world.later(16)
    ticks = iter(range(10**6))
    monkeypatch.setattr(world.services.sweeper, "_clock_s", lambda: float(next(ticks)))
    done = sweeping(world.services)({}, Context(left_s * 1000))
    assert done["sweep"] == rings
    assert done["retention"] >= 1
    world.drain(TRAIN)
    assert sweeping(world.services)({}, None)["sweep"] == 10 - rings
