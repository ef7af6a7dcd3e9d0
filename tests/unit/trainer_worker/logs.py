"""Logs that hold every kind of step, and what must be the same however they are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tensafe.operations.records import OpState
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.replay import replay
from tensafe_gpu.trainer.base_model import BaseModel
from tests.support.training_log import (
    Step,
    forward_backward,
    optim_step,
    private,
    private_sgd,
    save,
    sgd_step,
)
from tests.unit.trainer_worker.rig import Rig

PLAIN: list[Step] = [
    forward_backward(1),
    forward_backward(2),
    optim_step(),
    forward_backward(3, forward_only=True),
    forward_backward(4),
    save("middle"),
    optim_step(weight_decay=0.1, grad_clip_norm=0.5),
    forward_backward(5),
]
PRIVATE: list[Step] = [
    forward_backward(1, units=[1, 2, 2]),
    forward_backward(2, units=[3]),
    optim_step(),
    forward_backward(3, units=[4, 5]),
    optim_step(),
    save("middle"),
    forward_backward(4, units=[6, 7]),
    optim_step(),
    forward_backward(5, units=[8]),
]
SGD: list[Step] = [
    forward_backward(1, units=[1, 2, 2]),
    sgd_step(weight_decay=0.1),
    save("middle"),
    forward_backward(2, units=[3]),
    forward_backward(3, units=[4, 5]),
    sgd_step(),
    forward_backward(4, units=[6]),
]
LOGS: dict[str, tuple[list[Step], dict[str, Any]]] = {
    "plain": (PLAIN, {}),
    "private": (PRIVATE, {"optimizer": private()}),
    "correlated": (PRIVATE, {"optimizer": private(noise="bisr", bisr_bandwidth=3, max_steps=9)}),
    "sgd": (SGD, {"optimizer": private_sgd()}),
    "frozen": (PRIVATE, {"optimizer": private(freeze_lora_a=True)}),
}


@dataclass(frozen=True)
class Outcome:
    """All that a run leaves: its numbers, its open units, its results, its privacy."""

    state: bytes
    units: set[int]
    results: list[Any]
    epsilon: float | None


def begin(rig: Rig, name: str) -> list[Step]:
    steps, creation = LOGS[name]
    rig.begin(**creation)
    rig.drain()
    return steps


def outcome(rig: Rig, name: str) -> Outcome:
    """Ask a service that has nothing cached; recompute the ledger from its rows."""
    count = len(LOGS[name][0])
    assert rig.states() == [OpState.COMPLETED] * (count + 1)
    results = [_without_ids(rig.result(seq)) for seq in range(1, count + 1)]
    epsilon = None
    if name != "plain":
        services = rig.world.open()
        epsilon = replay(services.ports.items, services.vault, "acme", "letters").epsilon
        shown = Ledger(
            services.ports.items, services.vault, services.ports.signer, services.ports.anchors
        ).show("acme", "letters")
        assert shown.epsilon == epsilon
        assert shown.steps == sum(kind == "optim_step" for kind, _ in LOGS[name][0])
    state, units = rig.final()
    return Outcome(state, units, results, epsilon)


def _without_ids(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "artifact_id"}


def expected_outcome(base: BaseModel, name: str) -> Outcome:
    """Of the log run step by step in one process."""
    rig = Rig(base)
    for seq, step in enumerate(begin(rig, name), 1):
        rig.do(seq, step)
    return outcome(rig, name)
