"""A dealt run from its owner's first deal to one given up, and what it must lead to however it is killed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tensafe.operations.records import Operation, OpState
from tensafe.privacy.deal_record import DealRecord
from tensafe.privacy.deals import dealt_ref
from tensafe.privacy.replay import replay
from tensafe.services import Services
from tests.chaos.script import BASE
from tests.support.dealt_training import DOMAIN, dealt, register, send
from tests.support.training_log import begin, create, optim_step, result_of, save, submit

RUN = "s-2:train:0"
STEPS = 3
OPTIMIZER = dealt(sampling_probability=0.25)
PER_STEP = 4
"""Two halves of the deal, the step, a save: their numbers follow from the step's."""


def prepare(services: Services) -> None:
    """The domain is registered and the run's creation submitted."""
    register(services.domains)
    begin(services, RUN, BASE, create(optimizer=OPTIMIZER), optimizer=OPTIMIZER)


def deals_enough(services: Services) -> bool:
    """Whether the run's seed deals at least two units in every step, so that a deal can come in halves."""
    run = services.streams.get(RUN, "acme")
    record = services.deals.ledger.get(dealt_ref(run))
    return all(services.deals.arrival(run, record, step).missing >= 2 for step in range(STEPS))


def owner_asks(services: Services, step: int) -> None:
    """What the owner sends for a step; what is there already is found, as after a crash of its own."""
    run = services.streams.get(RUN, "acme")
    if done(services, last_of(step) - 1):
        # The deal is complete; the save may still be to be sent.
        submit(services, RUN, last_of(step), save(f"step-{step}"))
        return
    unit_ids = services.deals.issue(run, step).unit_ids
    half, first = len(unit_ids) // 2, 1 + step * PER_STEP
    work = [send(unit_ids[:half]), send(unit_ids[half:]), optim_step(), save(f"step-{step}")]
    for seq, operation in enumerate(work, first):
        submit(services, RUN, seq, operation)


def owner_gives_up(services: Services) -> None:
    """One deal more, which is looked at and abandoned; again, nothing happens."""
    run = services.streams.get(RUN, "acme")
    if services.deals.shown(run).last != "abandoned":
        services.deals.issue(run, STEPS)
        services.deals.abandon(run, STEPS)


def last_of(step: int) -> int:
    return (step + 1) * PER_STEP


def done(services: Services, seq: int) -> bool:
    found: Operation | None = services.outcomes.peek(RUN, seq)
    return found is not None and found.state.final


@dataclass(frozen=True)
class DealtOutcome:
    """The same whenever and however often the process was killed."""

    results: list[Any]
    weights: list[bytes]
    deals: DealRecord
    rows: int
    epsilon: float


def dealt_outcome(services: Services) -> DealtOutcome:
    run = services.streams.get(RUN, "acme")
    log = services.outcomes.operations(RUN, limit=1000)
    assert [operation.seq for operation in log] == list(range(1 + STEPS * PER_STEP))
    assert all(operation.state is OpState.COMPLETED for operation in log), [op.failure for op in log]
    ledger = replay(services.ports.items, services.vault, "acme", DOMAIN)
    saved = sorted(services.checkpoints.of_run(RUN), key=lambda one: one.name)
    results = [result_of(services, RUN, operation.seq) for operation in log]
    return DealtOutcome(
        results=[{k: v for k, v in result.items() if k != "artifact_id"} for result in results],
        weights=[services.checkpoints.read(run, one) for one in saved],
        deals=services.deals.shown(run),
        rows=ledger.steps,
        epsilon=ledger.epsilon,
    )
