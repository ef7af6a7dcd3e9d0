"""An operation that is submitted while its run is given up is never stuck, at any interleaving."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tensafe.operations.records import OpKind, OpState
from tensafe.operations.submissions import Submission
from tensafe_gpu.trainer.base_model import BaseModel
from tensafe_gpu.trainer.hot_run import HotRun
from tensafe_gpu.trainer.worker import TrainerWorker
from tests.support.interleaving import Exploration, Turns
from tests.unit.operations.world import TRAIN
from tests.unit.trainer_worker.rig import RUN, Rig

NOOP = Submission(1, OpKind.NOOP, b"{}")
Giving = Callable[[TrainerWorker], None]


def _idle(worker: TrainerWorker) -> None:
    """The step in which a run has been idle long enough."""
    worker.step()


def _stop(worker: TrainerWorker) -> None:
    worker.release_all()


def _fail(worker: TrainerWorker) -> None:
    (run,) = worker._hot.all()
    worker._give_up(run, MemoryError())


def _lose(worker: TrainerWorker) -> None:
    """Its message ran out of time, so it takes the run for lost, though nobody else has it."""
    run: HotRun = worker._hot.all()[0]
    run.lost = True
    worker._guarded(run)


@pytest.mark.parametrize("give_up", [_idle, _stop, _fail, _lose])
def test_no_interleaving_of_submitting_and_giving_up_leaves_an_operation_behind(
    base: BaseModel, give_up: Giving
) -> None:
    walk, count = Exploration(), 0
    while walk.next():
        rig, turns = Rig(base, idle_release_s=0.0 if give_up is _idle else 10**9), Turns()
        rig.begin(step=(OpKind.NOOP, b"{}"))
        seen = {
            actor: {name: turns.port(actor, name, getattr(rig.world, name)) for name in ("items", "queues")}
            for actor in ("edge", "trainer")
        }
        rig.services, rig.worker = rig.new_worker(**seen["trainer"])
        rig.worker.step()
        assert len(rig.worker._hot) == 1
        edge, stream = rig.world.open(**seen["edge"]), rig.world.stream(RUN)
        actors = {
            "edge": partial(edge.submissions.submit, stream, NOOP),
            "trainer": partial(give_up, rig.worker),
        }
        count += turns.run(actors, walk)
        # No sweeper, and no lease runs out: a few seconds, in which a message that is hidden comes back.
        rig.world.later(6)
        rig.services, rig.worker = rig.new_worker()
        rig.drain()
        assert rig.op(1).state is OpState.COMPLETED, walk.made
    assert count >= 5


def test_no_interleaving_of_submitting_and_hearing_in_vain_leaves_one_behind(base: BaseModel) -> None:
    """The message of a cancelled operation is in the queue, and for a while another one would be dropped."""
    walk, count = Exploration(), 0
    while walk.next():
        rig, turns = Rig(base), Turns()
        rig.begin()
        rig.drain()
        rig.worker.release_all()
        stream = rig.world.stream(RUN)
        rig.world.services.submissions.submit(stream, NOOP)
        rig.world.services.submissions.cancel(stream, NOOP.seq)
        assert rig.world.queues.depth(TRAIN) == 1
        seen = {
            actor: {name: turns.port(actor, name, getattr(rig.world, name)) for name in ("items", "queues")}
            for actor in ("edge", "trainer")
        }
        rig.services, rig.worker = rig.new_worker(**seen["trainer"])
        edge = rig.world.open(**seen["edge"])
        actors = {
            "edge": partial(edge.submissions.submit, stream, Submission(2, OpKind.NOOP, b"{}")),
            "trainer": rig.worker.step,
        }
        count += turns.run(actors, walk)
        rig.drain()  # no sweeper, and no time passes
        assert rig.op(2).state is OpState.COMPLETED, walk.made
    assert count >= 5
