"""What the ledger answers: the charge of a step and the state of a domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensafe.contracts.errors import IntegrityError
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.records import Head, Row, RunRecord, RunRef


@dataclass(frozen=True, slots=True)
class Charge:
    """Proof that a step is paid for; noise may be drawn for this step and no other.

    `epsilon`: of everything the domain's runs have released, this step included, at `delta`, for
    add-or-remove-one-unit adjacency. `run_epsilon`: of this run alone. `participations`: the run's
    largest count of any unit. `units`: how many units the step holds. `standard_deviation` is the
    noise's on the sum, `batch_size` the public divisor, `noise_key_id` names the secret to draw from.
    """

    run: RunRef
    step: int
    epsilon: float
    run_epsilon: float
    delta: float
    participations: int
    units: int
    standard_deviation: float
    batch_size: int
    noise_key_id: str
    row_hash: str

    @classmethod
    def of(cls, run: RunRef, row: Row, row_hash: str) -> Charge:
        return cls(
            run=run,
            step=row.step,
            epsilon=row.epsilon,
            run_epsilon=row.run_epsilon,
            delta=row.delta,
            participations=row.participations,
            units=row.units,
            standard_deviation=row.noise_multiplier * row.clip_norm,
            batch_size=row.batch_size,
            noise_key_id=row.noise_key_id,
            row_hash=row_hash,
        )


@dataclass(frozen=True, slots=True)
class RunStatement:
    """A run's part: largest count so far and the most it may reach; epsilon of the run alone."""

    run_id: str
    noise_multiplier: float
    participations: int
    max_participations: int
    max_epsilon: float | None
    steps: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class DomainStatement:
    """What a domain has spent over all its runs; `steps` and `head_hash` identify the ledger's state."""

    tenant: str
    domain: str
    delta: float
    epsilon: float
    steps: int
    head_hash: str
    runs: tuple[RunStatement, ...]

    @classmethod
    def of(cls, tenant: str, domain: str, head: Head, runs: Mapping[str, RunRecord]) -> DomainStatement:
        """From a head and the records of all its runs. Raises IntegrityError if one is missing."""
        if not head.runs.keys() <= runs.keys():
            raise IntegrityError(f"privacy domain {domain} names runs that have no record")
        return cls(
            tenant=tenant,
            domain=domain,
            delta=head.delta,
            epsilon=epsilon(head.runs, head.delta),
            steps=head.seq,
            head_hash=head.hash,
            runs=tuple(_run(run_id, head, runs[run_id]) for run_id in sorted(head.runs)),
        )


def _run(run_id: str, head: Head, record: RunRecord) -> RunStatement:
    sigma, participations = head.runs[run_id]
    return RunStatement(
        run_id=run_id,
        noise_multiplier=sigma,
        participations=participations,
        max_participations=record.mechanism.max_participations,
        max_epsilon=record.mechanism.max_epsilon,
        steps=record.steps,
        epsilon=epsilon({run_id: (sigma, participations)}, head.delta),
    )
