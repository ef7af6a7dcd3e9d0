"""A trainer calls, over the adapters of AWS, what its role and the keys let it; and its role no more.

One worker of the process, stepped by the test, meets what a trainer meets: runs of every kind, work of
others, poison, a lease that it has lost, and a run that it holds for long. No emulator here enforces IAM.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tensafe.operations.records import Operation, OpKind, OpState, StreamKind
from tensafe.operations.submissions import Submission
from tensafe_gpu.trainer.__main__ import build_worker
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.hot_runs import RENEW_AFTER_S
from tensafe_gpu.trainer.worker import WorkerSettings
from tests.support import dealt_training
from tests.support.as_caller import services_as
from tests.support.aws_stack import Stack, make_stack
from tests.support.role_rights import held, of_a_task
from tests.support.training_log import (
    VOCAB,
    Step,
    begin,
    forward_backward,
    load,
    optim_step,
    private,
    save,
    smallest_model,
    submit,
)
from tests.support.wire_calls import WireCalls, recording_moto

pytestmark = pytest.mark.slow

BASE: Final = "acme/tiny"
RUN: Final = "s-1:train:0"
NOT_CALLED: Final = {
    ("s3:ListBucket", "BlobBucket"): "without it S3 answers 403 for what is not there",
    **of_a_task(),
}
"""Rights that no call here takes, and why the trainer has them."""


@pytest.fixture
def wire() -> Iterator[WireCalls]:
    with recording_moto(receive_s=0.01) as wire:
        yield wire


class Trainer:
    """A worker and whoever submits to it, who is somebody else to AWS."""

    def __init__(self, stack: Stack, owner: str, **settings: Any) -> None:
        self.services, self.submitting = services_as("trainer", stack), services_as("other", stack)
        base = BaseModel.load(self.services.model(BASE).path, name=BASE)
        chosen = WorkerSettings(**{"retry_s": 0.0, "missing_seq_s": 0.0, **settings})
        self.now_s = 0.0
        self.worker = build_worker(self.services, BASE, base, owner, chosen, lambda: self.now_s)

    def drain(self) -> None:
        for _ in range(1000):
            if not self.worker.step():
                return
        raise AssertionError("the worker never rests")

    def do(self, run: str, *steps: Step, first_seq: int = 1) -> list[OpState]:
        """Submit operations, have them done; how they ended."""
        for seq, step in enumerate(steps, start=first_seq):
            submit(self.submitting, run, seq, step)
        self.drain()
        return [one.state for one in self.submitting.outcomes.operations(run)]

    def start_again(self, operation: Operation, times: int) -> None:
        """As workers that took the operation and were killed."""
        for _ in range(times):
            operation = self.submitting.outcomes.start(operation, ())


def completed(states: list[OpState]) -> None:
    assert set(states) == {OpState.COMPLETED}, states


def a_plain_run(trainer: Trainer) -> None:
    """Every kind of operation; one is larger than an item, and a sample waits for weights."""
    begin(trainer.submitting, RUN, BASE)
    sampler, writes = trainer.submitting.streams.creation(
        "s-1:sample:1",
        "acme",
        StreamKind.SAMPLER,
        BASE,
        spec={"model_path": f"tinker://{RUN}/sampler_weights/b"},
    )
    trainer.submitting.ports.items.write(writes)
    waiting = Submission(1, OpKind.SAMPLE, b"{}", ring=False)
    trainer.submitting.submissions.submit(sampler, waiting)
    states = trainer.do(
        RUN,
        forward_backward(0, tokens=[list(range(1, 60))] * 100),
        optim_step(),
        save("end"),
        save("a", OpKind.SAVE_SAMPLER, sampling_session_id="s-1:sample:0"),
        save("b", OpKind.SAVE_SAMPLER, sampling_session_id="s-1:sample:1", create_session=False),
        save("out", OpKind.SAVE_EXTERNAL),
        load(RUN, "end"),
    )
    completed(states)
    assert trainer.do(RUN, save("end"), first_seq=8)[-1] is OpState.FAILED  # the name is taken
    begin(trainer.submitting, "s-1:train:1", BASE, load(RUN, "end"))
    trainer.drain()
    submit(trainer.submitting, RUN, 10, optim_step())  # nothing of seq 9 ever comes
    trainer.drain()
    assert all_ended(trainer, RUN)


def a_bounded_run(trainer: Trainer) -> None:
    run = "s-2:train:0"
    begin(trainer.submitting, run, BASE, optimizer=private(batch_size=3))
    completed(trainer.do(run, forward_backward(0, units=[0, 1, 2]), optim_step(), save("end")))
    trainer.worker.release_all()
    completed(trainer.do(run, forward_backward(1, units=[3, 4, 5]), optim_step(), first_seq=4))


def a_dealt_run(trainer: Trainer) -> None:
    run, other = "s-3:train:0", trainer.submitting
    dealt_training.register(other.domains)
    begin(other, run, BASE, optimizer=dealt_training.dealt(max_steps=2, sampling_probability=0.25))
    trainer.drain()
    first_seq = 1
    for step in range(2):
        units = other.deals.issue(other.streams.get(run, "acme"), step).unit_ids
        data = [dealt_training.send(units)] if units else []
        states = trainer.do(run, *data, optim_step(), save(f"step-{step}"), first_seq=first_seq)
        completed(states)
        first_seq = len(states)
        trainer.worker.release_all()


def poison(trainer: Trainer) -> None:
    """An operation that killed three workers, and one that waits behind it."""
    run, other = "s-4:train:0", trainer.submitting
    begin(other, run, BASE)
    trainer.drain()
    trainer.worker.release_all()
    submit(other, run, 1, forward_backward(0))
    submit(other, run, 2, optim_step())
    trainer.start_again(other.outcomes.get(other.streams.get(run, "acme"), 1), 3)
    trainer.drain()
    assert [one.state for one in other.outcomes.operations(run)][1:] == [OpState.FAILED, OpState.FAILED]
    other.streams.erase("s-1:train:1", "acme")
    other.doorbell.send_run(other.streams.get("s-4:train:0", "acme"))  # of a run that is blocked
    trainer.drain()


def a_lost_lease(trainer: Trainer, blobs: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another trainer takes the run while a checkpoint of it is written: that and its snapshot go."""
    run, other = "s-5:train:0", trainer.submitting
    begin(other, run, BASE)
    trainer.drain()
    before = blobs()
    commit = type(trainer.services.outcomes).complete

    def overtaken(*given: Any) -> None:
        other.leases.break_all("trainer-1")
        assert other.leases.claim(run, "another") is not None
        commit(*given)

    with monkeypatch.context() as patch:
        patch.setattr(type(trainer.services.outcomes), "complete", overtaken)
        submit(other, run, 1, save("lost"))
        trainer.worker.step()
    assert other.checkpoints.of_run(run) == []
    assert blobs() == before


def long_holds(trainer: Trainer) -> None:
    """A heartbeat, another message in time, and one that rings for a run that somebody else holds."""
    run, other = "s-6:train:0", trainer.submitting
    begin(other, run, BASE)
    trainer.drain()
    trainer.worker._hot.beat()
    trainer.now_s = RENEW_AFTER_S
    trainer.worker._hot.beat()
    trainer.drain()
    assert other.leases.claim(run, "another") is None


def others_wait(stack: Stack) -> None:
    """A worker that has room for one run, and another one that comes."""
    small = Trainer(stack, "trainer-2", max_hot_runs=1, idle_snapshot_s=0.0)
    for run in ("s-7:train:0", "s-7:train:1"):
        begin(small.submitting, run, BASE)
    until(lambda: small.worker.step() or True, lambda: all_ended(small, "s-7:train:1"))
    small.worker.release_all()


def all_ended(trainer: Trainer, run: str) -> bool:
    return all(one.state.final for one in trainer.submitting.outcomes.operations(run))


def until(act: Callable[[], object], true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        act()


def test_a_trainer_takes_no_right_that_it_lacks_and_has_none_that_it_does_not_take(
    wire: WireCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {
        "name": BASE,
        "path": smallest_model(tmp_path / "model"),
        "arch": "LlamaForCausalLM",
        "vocab_size": VOCAB,
        "max_context_tokens": 64,
    }
    stack = make_stack(wire.endpoint, model)
    listing = stack.client("s3").list_objects_v2

    def blobs() -> int:
        return int(listing(Bucket=stack.environment["TENSAFE_BUCKET"])["KeyCount"])

    trainer = Trainer(stack, "trainer-1")
    trainer.services.workers.announce("trainer", BASE, "trainer-1", 0)
    a_plain_run(trainer)
    a_bounded_run(trainer)
    a_dealt_run(trainer)
    long_holds(trainer)
    trainer.worker.release_all()
    poison(trainer)
    a_lost_lease(trainer, blobs, monkeypatch)
    trainer.worker.release_all()
    others_wait(stack)
    trainer.services.workers.withdraw("trainer-1")
    keys = {
        stack.environment["TENSAFE_KMS_KEY_ID"]: "DataKey",
        stack.environment["TENSAFE_SIGNING_KEY_ID"]: "SigningKey",
    }
    found = held(wire.of("trainer"), "Trainer", keys)
    assert found.refused == set()
    assert found.untaken == set(NOT_CALLED)
