"""Two trainers, killed and overtaken, and 200 operations of 20 runs: each is applied once and in order.

Over SQLite, in memory and over the adapters of AWS, with a queue that loses, doubles and holds back
messages. Results and final states are compared with those of one trainer that nothing happened to: an
operation that was lost, applied twice or out of order shows in them. Nothing runs at the same time: at a
call of a port a worker dies, or time passes and the other one goes on in the middle of it. A seed is a whole
history, but for the emulator's queues, which keep time of their own. Real processes: test_two_processes.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tensafe.services import Ports, Services
from tensafe.storage.aws_clients import LazyClient
from tensafe.storage.dynamodb_items import DynamoDbItems
from tensafe_gpu.trainer.__main__ import build_worker
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.worker import TrainerWorker
from tests.chaos.twenty_runs import SETTINGS, all_ended, outcome, seeds, submit_mixed
from tests.support.aws_stack import make_stack
from tests.support.faulty_ports import BadQueue, Fate, Killed
from tests.support.ministack import ON_EMULATOR, emulator_of_aws
from tests.unit.operations.world import BASE, LEASE_S, World

pytestmark = pytest.mark.slow


class AwsWorld(World):
    """On ministack, whose transactions take 2 ms; moto's copy the whole table."""

    def __init__(self, ports: Ports, table: str) -> None:
        super().__init__()
        self.items = DynamoDbItems(LazyClient("dynamodb"), table, clock=self.clock_s)
        self.queues, self.blobs = ports.queues, ports.blobs
        self.keyring, self.bell = ports.keyring, ports.bell
        self.services = self.open()


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param != "emulator":
        yield World(tmp_path if request.param == "sqlite" else None)
        return
    with emulator_of_aws(tmp_path) as emulator:
        stack = make_stack(emulator.endpoint_url)
        with stack.services() as services:
            yield AwsWorld(services.ports, stack.environment["TENSAFE_TABLE"])


def in_memory() -> list[tuple[str, int]]:
    return [("memory", seed) for seed in seeds(3)]


class History:
    """One seed's: who dies when, who is overtaken when, and what the queue does."""

    def __init__(self, world: World, base: BaseModel, seed: int) -> None:
        self.world, self.base, self.rng = world, base, random.Random(seed)
        self.queues = BadQueue(world.queues, self.rng, lost=0.4, doubled=0.15, held_back=0.2)
        self.killed = self.overtaken = self._hired = 0
        self._at_hand: list[int] = []
        """Places of the workers that are in the middle of a step, the overtaken one first."""
        self.edge = self.opened(self.queues)
        self.workers = [self.hired(), self.hired()]

    def opened(self, queues: Any, **ports: Any) -> Services:
        return self.world.open(queues=queues, **ports)

    def hired(self) -> TrainerWorker:
        self._hired += 1
        fate = Fate(before=self.perhaps_die, after=self.perhaps_be_overtaken)
        ports = fate.around({"items": self.world.items, "blobs": self.world.blobs, "queues": self.queues})
        services = self.opened(**ports)
        return build_worker(services, BASE, self.base, f"trainer-{self._hired}", SETTINGS)

    def perhaps_die(self) -> None:
        if self.rng.random() < 0.02 and not self._spared():
            self.killed += 1
            raise Killed

    def perhaps_be_overtaken(self) -> None:
        """The worker at hand stands still for longer than its lease, and the other one works meanwhile."""
        if len(self._at_hand) == 1 and self.rng.random() < 0.02 and not self._spared():
            self.overtaken += 1
            self.pass_time()
            self.step(1 - self._at_hand[0])

    def _spared(self) -> bool:
        """Whether one more death would make something poison, which it is not."""
        if not self._at_hand:
            return True
        runs = self.workers[self._at_hand[-1]]._hot.all()
        return any(run.lease.claims > 1 or (run.begun is not None and run.begun.tries > 1) for run in runs)

    def pass_time(self) -> None:
        self.world.later(LEASE_S + 1)
        self.queues.time_out()

    def step(self, place: int) -> bool:
        self._at_hand.append(place)
        try:
            return self.workers[place].step()
        except Killed:
            self.workers[place] = self.hired()
            return True
        finally:
            self._at_hand.pop()

    def submit(self) -> None:
        """Whatever has been submitted, the workers work at now and then."""
        for count in submit_mixed(self.edge, self.rng):
            if count % 10 == 0:
                self.step(self.rng.randrange(2))

    def finish(self) -> None:
        """Until nothing is open; the sweeper and the consumer of dead letters come on a schedule."""
        for _ in range(400):
            if not any([self.step(0), self.step(1)]):
                if all_ended(self.edge):
                    return
                self.pass_time()
                self.world.later(60)
                self.edge.dead_letters.consume(self.world.queues, self.edge.ports.queue_specs)
                self.edge.sweeper.sweep()
        raise AssertionError("operations stay open")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("world", "seed"),
    [("sqlite", 4), pytest.param("emulator", 4, marks=ON_EMULATOR.marks), *in_memory()],
    indirect=["world"],
)
def test_two_workers_apply_every_operation_once_and_in_order(
    world: World, base: BaseModel, undisturbed: dict[str, Any], seed: int
) -> None:
    history = History(world, base, seed)
    history.submit()
    history.finish()
    assert outcome(history.edge) == undisturbed
    assert history.edge.dead_letters.list() == []
    # All of it happened; how often depends on what the emulator was quick with.
    assert history.killed >= 2
    assert history.overtaken >= 1
    assert min(history.queues.counts.values()) >= 1, history.queues.counts
