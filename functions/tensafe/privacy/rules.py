"""What a step or a run must satisfy before it is charged: decisions on values, no storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from tensafe.contracts.errors import BudgetExceeded, Conflict, InvalidRequest
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.mechanism import ADJACENCY, Mechanism
from tensafe.privacy.records import Head, Row, RunRecord
from tensafe.privacy.refusals import NOTHING_CHARGED, telling
from tensafe.privacy.totals import domain_epsilon
from tensafe.privacy.units import ParticipationCounts

MAX_RUNS_PER_DOMAIN: Final = 2000
"""The head names every run of its domain and is one item of at most 400 KB."""


LATE: Final = (
    "domain {domain} has released something already, and the epsilon of dealt runs holds only if every run "
    "was chosen before that, or without looking at it; if that is so for this run, say so with "
    "fixed_in_advance=true, else use another domain"
)


@dataclass(frozen=True, slots=True)
class State:
    """What a decision about one run is made from, as read; writes are conditional on its versions."""

    head: Head
    record: RunRecord
    counts: ParticipationCounts


@dataclass(frozen=True, slots=True)
class Step:
    """A step that asks to be charged: the tags of its units, their digest, the caller's binding."""

    run_id: str
    number: int
    tags: Sequence[bytes]
    digest: str
    binding: str


@telling(NOTHING_CHARGED)
def refuse_unfit(head: Head, mechanism: Mechanism, *, fixed_in_advance: bool = False) -> None:
    """Refuse a run that cannot join its domain, or whose first step could never be charged."""
    if head.dealt and head.has_released and not fixed_in_advance:
        raise InvalidRequest(LATE.format(domain=mechanism.domain), field="optimizer.fixed_in_advance")
    if mechanism.delta != head.delta:
        raise InvalidRequest(
            f"domain {mechanism.domain} has delta={head.delta!r}, set by its first run; all its runs must "
            "use it, since epsilons at different deltas do not compose: give it, or another domain",
            field="optimizer.delta",
        )
    if len(head.runs) + len(head.dealt) >= MAX_RUNS_PER_DOMAIN:
        raise InvalidRequest(
            f"domain {mechanism.domain} has {MAX_RUNS_PER_DOMAIN} runs, which is the most it can hold; use "
            "another domain",
            field="optimizer.domain",
        )
    if mechanism.max_epsilon is None:
        return
    first = domain_epsilon(head.with_run("", *mechanism.accounted(1)))
    if first > mechanism.max_epsilon:
        raise BudgetExceeded(
            f"domain {mechanism.domain} stands at epsilon {domain_epsilon(head):.4f}; the first "
            f"step of this run would bring it to {first:.4f}, over max_epsilon={mechanism.max_epsilon:g}: "
            "use more noise or a larger max_epsilon",
            field="optimizer.max_epsilon",
        )


@telling(NOTHING_CHARGED)
def next_row(state: State, step: Step, at_ms: int) -> Row:
    """The row that charges the step. Raises BudgetExceeded, InvalidRequest (a unit too early) or Conflict."""
    head, record, mechanism = state.head, state.record, state.record.mechanism
    _refuse_going_back(record, step)
    _refuse_spent_units(state, step)
    _refuse_early_units(state, step)
    participations = state.counts.largest_after(step.tags)
    accounted = mechanism.accounted(participations)
    after = head.with_run(step.run_id, *accounted)
    total = domain_epsilon(after)
    if step.tags and mechanism.max_epsilon is not None and total > mechanism.max_epsilon:
        raise BudgetExceeded(
            f"this step would bring domain {mechanism.domain} to epsilon {total:.4f} at delta="
            f"{head.delta:g} (now {domain_epsilon(head):.4f}); the run's max_epsilon is "
            f"{mechanism.max_epsilon:g}: drop the accumulated sum with load_state, or go on in a run with "
            "more noise. No noise was drawn and nothing was applied"
        )
    row = Row(
        seq=head.seq + 1,
        previous=head.hash,
        run_id=step.run_id,
        step=step.number,
        at_ms=at_ms,
        noise_multiplier=mechanism.noise_multiplier,
        clip_norm=mechanism.clip_norm,
        batch_size=mechanism.batch_size,
        max_participations=mechanism.max_participations,
        delta=head.delta,
        mode=mechanism.mode,
        adjacency=ADJACENCY,
        accountant=mechanism.accountant,
        noise_key_id=record.noise_key_id,
        units=len(step.tags),
        units_digest=step.digest,
        binding=step.binding,
        participations=participations,
        run_epsilon=epsilon({step.run_id: accounted}, head.delta),
        epsilon=total,
    )
    return row if mechanism.version == 1 else _correlated(row, mechanism, record.steps)


def _correlated(row: Row, mechanism: Mechanism, index: int) -> Row:
    """The row with what versions 2 and 4 add."""
    return replace(
        row,
        version=mechanism.version,
        index=index,
        max_steps=mechanism.max_steps,
        min_separation=mechanism.min_separation,
        bisr_bandwidth=mechanism.bisr_bandwidth,
        sensitivity=mechanism.sensitivity,
        coefficient_hash=mechanism.coefficient_hash,
        attested_probability=mechanism.attested_probability,
        attested_epsilon=mechanism.attested_epsilon(index + 1),
    )


def advanced(state: State, row: Row, row_hash: str) -> tuple[RunRecord, Head]:
    """The run's record and the domain's head once the row is written."""
    record = replace(
        state.record,
        steps=state.record.steps + 1,
        last_step=row.step,
        participations=row.participations,
        attested_epsilon=row.attested_epsilon,
    )
    head = state.head.with_run(row.run_id, *record.mechanism.accounted(row.participations))
    stated = row.epsilon if head.dealt else None
    return record, replace(head, seq=row.seq, hash=row_hash, epsilon=stated)


def _refuse_going_back(record: RunRecord, step: Step) -> None:
    limit = record.mechanism.max_steps
    if step.number <= record.last_step:
        raise Conflict(
            f"step {step.number} of run {step.run_id} lies before step {record.last_step}, which is "
            "charged; steps only go forward, whatever checkpoint is loaded"
        )
    if limit is not None and record.steps >= limit:
        raise BudgetExceeded(f"the run has taken its max_steps={limit} steps; create another run")


def _refuse_spent_units(state: State, step: Step) -> None:
    limit = state.record.mechanism.max_participations
    spent = state.counts.spent_positions(step.tags, limit)
    if spent:
        raise BudgetExceeded(
            f"{len(spent)} of the {len(step.tags)} units of this step have taken part in "
            f"max_participations={limit} steps of this run: drop the sum with load_state, and leave them "
            "out. No noise was drawn and nothing was applied"
        )


def _refuse_early_units(state: State, step: Step) -> None:
    early = state.counts.early_positions(step.tags)
    if early:
        raise InvalidRequest(
            f"{len(early)} of the {len(step.tags)} units of this step took part in another one less than "
            f"min_separation={state.record.mechanism.min_separation} steps ago. No noise was drawn and "
            "nothing was applied"
        )
