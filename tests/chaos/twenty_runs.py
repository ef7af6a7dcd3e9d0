"""Twenty runs of ten operations each, and what they must have led to in the end."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any, Final

from tensafe.operations.records import OpState
from tensafe.services import Services
from tensafe_gpu.trainer.__main__ import build_worker
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.worker import WorkerSettings
from tests.support import training_log
from tests.unit.operations.world import BASE, World

RUNS: Final = [f"s-1:train:{number}" for number in range(20)]
NEVER: Final = 10**9
SETTINGS: Final = WorkerSettings(
    idle_snapshot_s=0.0,
    idle_release_s=NEVER,
    snapshot_every_s=NEVER,
    snapshot_every_operations=4,
    missing_seq_s=NEVER,
    retry_s=0.0,
    storage_retry_s=0.0,
)


def seeds(count: int) -> list[int]:
    """The first so many, or as many as TENSAFE_CHAOS_SEEDS says."""
    return list(range(int(os.environ.get("TENSAFE_CHAOS_SEEDS", count))))


def log_of(run: int) -> list[training_log.Step]:
    """Ten operations whose outcome depends on all of them and on their order."""
    steps = [training_log.create()]
    for number in range(4):
        steps += [training_log.forward_backward(10 * run + number, count=1), training_log.optim_step()]
    return [*steps, training_log.save("end")]


def submit_mixed(services: Services, rng: random.Random) -> Iterator[int]:
    """Every run's operations in a mixed order, those of one run in any too; how many after each."""
    for run_id in RUNS:
        training_log.begin(services, run_id, BASE)
    waiting = [(number, seq) for number in range(len(RUNS)) for seq in range(1, 10)]
    rng.shuffle(waiting)
    for count, (number, seq) in enumerate(waiting):
        training_log.submit(services, RUNS[number], seq, log_of(number)[seq])
        yield count


def all_ended(services: Services) -> bool:
    return all(services.outcomes.first_open(run_id) is None for run_id in RUNS)


def outcome(services: Services) -> dict[str, Any]:
    """Results and final states: an operation that was lost, applied twice or out of order shows in them."""
    found: dict[str, Any] = {}
    for number, run_id in enumerate(RUNS):
        log = services.outcomes.operations(run_id, limit=1000)
        assert [one.state for one in log] == [OpState.COMPLETED] * len(log_of(number)), (run_id, log)
        assert [one.seq for one in log] == list(range(len(log)))
        results = [training_log.result_of(services, run_id, one.seq) for one in log[:-1]]
        found[run_id] = (results, training_log.snapshot_of(services, run_id))
    return found


def undisturbed(base: BaseModel) -> dict[str, Any]:
    """The outcome of one trainer that nothing happens to."""
    world = World()
    services = world.open()
    for number, run_id in enumerate(RUNS):
        for seq, step in enumerate(log_of(number)):
            if seq == 0:
                training_log.begin(services, run_id, BASE)
            else:
                training_log.submit(services, run_id, seq, step)
    worker = build_worker(world.open(), BASE, base, "trainer-0", SETTINGS)
    while worker.step():
        pass
    worker.release_all()
    return outcome(world.open())
