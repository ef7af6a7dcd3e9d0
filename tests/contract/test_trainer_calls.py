"""What the trainer's own loop costs on AWS: counted while `TrainerWorker.step` works, and nothing else.

At most 3 calls of DynamoDB and 1 of SQS for an operation that ends, however the operations come. What a look
costs that finds nothing is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tensafe.operations.records import OpState
from tensafe.storage.process_bell import ProcessBell
from tensafe_gpu.trainer.__main__ import build_worker
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.looks import RECENT_S
from tensafe_gpu.trainer.worker import TrainerWorker, WorkerSettings
from tests.contract.emulators import Wire, moto_in_process
from tests.contract.test_rooms_on_aws import AwsWorld
from tests.support import training_log
from tests.unit.operations.world import BASE

RUN: Final = "s-1:train:0"
OTHER: Final = "s-1:train:1"
NEVER: Final = 1e9
DYNAMODB: Final = frozenset({"GetItem", "BatchGetItem", "Query", "PutItem", "TransactWriteItems"})
SQS: Final = frozenset({"ReceiveMessage", "SendMessage", "DeleteMessage", "ChangeMessageVisibility"})
FINISHED: Final = {"BatchGetItem": 1, "TransactWriteItems": 2}
"""Operation and payload are read; it is begun; it ends."""
LOOK: Final = {"BatchGetItem": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel.load(training_log.smallest_model(tmp_path_factory.mktemp("model")), name=BASE)


class Trainer:
    """A warm trainer over moto, whose bell nobody else rings, and the clients' edge beside it."""

    def __init__(self, base: BaseModel, wire: Wire) -> None:
        self.world, self.wire, self.now_s = AwsWorld(), wire, 1000.0
        own = self.world.open(keyring=self.world.services.ports.keyring, bell=ProcessBell())
        quiet = WorkerSettings(
            idle_snapshot_s=NEVER, idle_release_s=NEVER, snapshot_every_s=NEVER, missing_seq_s=NEVER
        )
        self.worker: TrainerWorker = build_worker(own, BASE, base, "trainer-1", quiet, lambda: self.now_s)
        self.hold(RUN)

    def hold(self, run_id: str) -> None:
        training_log.begin(self.world.services, run_id, BASE)
        while self.worker.step():
            pass
        self.now_s += 1.0
        assert not self.worker.step()

    def submit(self, *seqs: int, run_id: str = RUN) -> None:
        for seq in seqs:
            step = training_log.optim_step() if seq % 2 else training_log.forward_backward(seq, count=1)
            training_log.submit(self.world.services, run_id, seq, step)

    def calls(self, act: Callable[[], object]) -> Counter[str]:
        self.wire.forget()
        act()
        found = Counter(call.rpartition(".")[2] for call in self.wire.called)
        assert set(found) <= DYNAMODB | SQS
        return found

    def drained(self) -> Counter[str]:
        """The calls of all steps until one finds nothing, that one among them."""

        def drain() -> None:
            while self.worker.step():
                pass

        return self.calls(drain)

    def ended(self, run_id: str = RUN) -> int:
        log = self.world.log(self.world.stream(run_id))
        assert {operation.state for operation in log} == {OpState.COMPLETED}
        return len(log)


@pytest.fixture
def trainer(base: BaseModel) -> Iterator[Trainer]:
    with moto_in_process(), Wire().between() as wire:
        yield Trainer(base, wire)


def of(service: frozenset[str], calls: Counter[str]) -> int:
    return sum(count for name, count in calls.items() if name in service)


def test_an_operation_that_comes_alone(trainer: Trainer) -> None:
    trainer.submit(1)
    worked = trainer.calls(trainer.worker.step)
    assert worked == FINISHED | {"ReceiveMessage": 1}
    assert (of(DYNAMODB, worked), of(SQS, worked)) == (3, 1)
    assert trainer.ended() == 2
    # Another may have come meanwhile: one look, at this run alone, and none at the queue.
    assert trainer.calls(trainer.worker.step) == LOOK


def test_operations_that_come_one_after_another(trainer: Trainer) -> None:
    """Each comes while the one before it is at work: no look is in vain, and the queue's is once a second."""

    calls = Counter[str]()
    for seq in range(1, 11):
        trainer.submit(seq)
        calls += trainer.calls(trainer.worker.step)
        trainer.now_s += 0.25
    assert trainer.ended() == 11
    assert calls == {"BatchGetItem": 10, "TransactWriteItems": 20, "ReceiveMessage": 3}


@pytest.mark.parametrize("waiting", [5, 20, 40])
def test_operations_that_wait(trainer: Trainer, waiting: int) -> None:
    """Read many at a time; the look that finds the log empty is counted too."""
    trainer.submit(*range(1, waiting + 1))
    calls = trainer.drained()
    assert trainer.ended() == waiting + 1
    assert calls["TransactWriteItems"] == 2 * waiting
    assert of(DYNAMODB, calls) <= 3 * waiting
    assert of(SQS, calls) == 1
    if waiting == 20:
        assert of(DYNAMODB, calls) / waiting == 2.3


def test_a_run_at_work_costs_nothing_for_the_others(trainer: Trainer) -> None:
    trainer.hold(OTHER)
    trainer.now_s += RECENT_S
    trainer.submit(1, 2, 3)
    calls = trainer.drained()
    # 3 reads of the run at work (1, then 2, then none), and one of the other, that found nothing.
    assert calls == {"BatchGetItem": 4, "TransactWriteItems": 6, "ReceiveMessage": 1}


def test_a_trainer_that_waits(trainer: Trainer) -> None:
    """Once a second: one look at the queue, and one at each run that it holds."""
    assert trainer.calls(trainer.worker.step) == LOOK | {"ReceiveMessage": 1}
    trainer.hold(OTHER)
    assert trainer.calls(trainer.worker.step) == {"BatchGetItem": 2, "ReceiveMessage": 1}


def test_runs_that_work_in_turns_wait_for_no_look(trainer: Trainer) -> None:
    """What a client sends within seconds of its last operation is found by the next step."""
    trainer.hold(OTHER)
    for seq in range(1, 6):
        for run_id in (RUN, OTHER):
            trainer.submit(seq, run_id=run_id)
            assert trainer.worker.step()
            assert trainer.world.op(trainer.world.stream(run_id), seq).state.final
            trainer.now_s += 0.1


def test_a_run_that_works_for_long_does_not_keep_others_waiting(trainer: Trainer) -> None:
    """What another run was given, and a run that nobody holds, within a second."""
    trainer.hold(OTHER)
    trainer.now_s += RECENT_S
    trainer.submit(1)
    assert trainer.worker.step()
    trainer.submit(1, run_id=OTHER)
    training_log.begin(trainer.world.services, "s-1:train:2", BASE)
    trainer.submit(2)
    assert trainer.worker.step()
    assert len(trainer.world.log(trainer.world.stream(OTHER))) == 2
    assert not trainer.world.op(trainer.world.stream(OTHER), 1).state.final
    trainer.submit(3)
    trainer.now_s += 1.0
    assert trainer.worker.step()
    assert [trainer.ended(run_id) for run_id in (RUN, OTHER, "s-1:train:2")] == [4, 2, 1]
