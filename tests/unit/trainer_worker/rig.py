"""A trainer worker in this process: single-stepped, restarted, and looked into."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from tensafe.contracts.training import OptimizerConfig
from tensafe.operations.records import Operation, OpKind, OpState
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tensafe_gpu.trainer.__main__ import build_worker
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.worker import TrainerWorker, WorkerSettings
from tests.support import training_log
from tests.support.training_log import ADAMW, Step
from tests.unit.operations.world import BASE, World

NEVER = 10**9
RUN = "s-1:train:0"


class Rig:
    """Stores, services and one worker. Every restart has a new owner and new, cold services."""

    def __init__(self, base: BaseModel, folder: Path | None = None, **settings: Any) -> None:
        self.base = base
        self.world = World(folder)
        defaults: dict[str, Any] = {
            "idle_snapshot_s": NEVER,
            "idle_release_s": NEVER,
            "snapshot_every_s": NEVER,
            "snapshot_every_operations": NEVER,
            "missing_seq_s": NEVER,
            "retry_s": 0.0,
        }
        self.settings = WorkerSettings(**{**defaults, **settings})
        self._numbers = itertools.count()
        self.services, self.worker = self.new_worker()

    def new_worker(self, **ports: Any) -> tuple[Services, TrainerWorker]:
        """A second trainer over the same stores; `ports` replace some of its own."""
        services = self.world.open(**ports)
        owner = f"trainer-{next(self._numbers)}"
        clock = self.world.clock_s
        return services, build_worker(services, BASE, self.base, owner, self.settings, clock)

    def restart(self, **ports: Any) -> None:
        """The worker is gone without a word; its lease and its message run out; a new one begins."""
        self.world.later(100)
        self.services, self.worker = self.new_worker(**ports)
        self.ring_again()

    def ring_again(self) -> None:
        """What the worker and the supervisor, another process, do every few seconds."""
        services = self.world.services
        services.workers.announce("trainer", BASE, self.worker._owner, 0)
        services.dead_letters.consume(services.ports.queues, services.ports.queue_specs)
        services.sweeper.sweep()

    def begin(self, run_id: str = RUN, step: Step | None = None, optimizer: OptimizerConfig = ADAMW) -> None:
        training_log.begin(self.world.services, run_id, BASE, step, optimizer=optimizer)

    def submit(self, seq: int, step: Step, run_id: str = RUN) -> None:
        training_log.submit(self.world.services, run_id, seq, step)

    def drain(self) -> None:
        """Step until there is nothing left to do."""
        for _ in range(1000):
            if not self.worker.step():
                return
        raise AssertionError("the worker never rests")

    def do(self, seq: int, step: Step, run_id: str = RUN) -> Operation:
        """Submit one operation and let the worker run it; how it ended."""
        self.submit(seq, step, run_id)
        self.drain()
        return self.op(seq, run_id)

    def op(self, seq: int, run_id: str = RUN) -> Operation:
        return self.services.outcomes.get(self.world.stream(run_id), seq)

    def states(self, run_id: str = RUN) -> list[OpState]:
        return [operation.state for operation in self.world.log(self.world.stream(run_id))]

    def result(self, seq: int, run_id: str = RUN) -> Any:
        return training_log.result_of(self.services, run_id, seq)

    def final(self, run_id: str = RUN) -> tuple[bytes, set[int]]:
        """The bytes of the run's state, and the units in its accumulator, after all that was submitted."""
        stream = self.world.stream(run_id)
        last = self.world.services.submissions.append(stream, Submission(0, OpKind.NOOP, b"{}"))
        self.drain()
        assert self.op(last.seq, run_id).state is OpState.COMPLETED
        self.worker.release_all()
        payloads = [sort for sort in self.world.stored(stream) if sort.startswith("pay/")]
        assert payloads == [], "the snapshot has passed them"
        return training_log.snapshot_of(self.world.open(), run_id)
