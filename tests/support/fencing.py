"""What a worker that lost its lease may still do, over any adapters: nothing."""

from __future__ import annotations

import pytest

from tensafe.operations.records import Failure, Result
from tensafe.storage.ports import ConditionFailed
from tests.unit.operations.world import LEASE_S, World


def late_writes_are_rejected(world: World) -> None:
    """It can start, complete or fail nothing, and leaves no blob; who has the lease now can."""
    run = world.run()
    outcomes = world.services.outcomes
    operation = world.submit(run, 1)
    lost = world.claim(run, "trainer-a")
    running = outcomes.start(operation, [lost.check])
    world.later(LEASE_S)
    kept = world.claim(run, "trainer-b")
    with pytest.raises(ConditionFailed):
        outcomes.start(running, [lost.check])
    with pytest.raises(ConditionFailed):
        outcomes.complete(run, running, Result("application/json", b"x" * 100_000), [lost.check])
    with pytest.raises(ConditionFailed):
        outcomes.fail(run, running, Failure("no", "no", "user"), [lost.check])
    assert world.op(run, 1) == running
    assert world.blob_keys() == set()
    outcomes.complete(run, running, Result("application/json", b"{}"), [kept.check])
    assert world.op(run, 1).state.final
