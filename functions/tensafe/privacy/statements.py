"""What the ledger answers: the charge of a step and the state of a domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensafe.contracts.errors import IntegrityError
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.dealt_records import AnyRecord, DealtRecord
from tensafe.privacy.mechanism import MODE
from tensafe.privacy.records import Head, Row, RunRef
from tensafe.privacy.totals import stated_epsilon


@dataclass(frozen=True, slots=True)
class Charge:
    """Proof that a step is paid for; noise may be drawn for this step and no other.

    `epsilon`: of everything the domain's runs have released, this step included, at `delta`, for
    add-or-remove-one-unit adjacency. `run_epsilon`: of this run alone. `participations`: the run's
    largest count of any unit. `units`: how many units the step holds. `standard_deviation` is the fresh
    noise's on the sum, `batch_size` the public divisor, `noise_key_id` names the secret to draw from.
    With a `bisr_bandwidth` the noise is correlated, and `index` the step's place in it. `attested_epsilon`:
    of this run alone, if its client samples as it says.
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
    index: int | None = None
    bisr_bandwidth: int | None = None
    attested_epsilon: float | None = None

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
            index=row.index,
            bisr_bandwidth=row.bisr_bandwidth,
            attested_epsilon=row.attested_epsilon,
        )


@dataclass(frozen=True, slots=True)
class RunStatement:
    """A run's part: largest count so far and the most it may reach; epsilon of the run alone.

    With correlated noise (`bisr_bandwidth`, its coefficients named by `coefficient_hash`, `sensitivity` of
    all `max_steps` steps over the clipping norm) epsilon is that of the whole run from its first unit on.

    A dealt run (`sampling_probability`, `batch_cap`) counts no participations; `steps` are its deals,
    `abandoned` those that were given up, and epsilon is that of all `max_steps` deals from its opening on.
    """

    run_id: str
    noise_multiplier: float
    participations: int | None
    max_participations: int | None
    max_epsilon: float | None
    steps: int
    epsilon: float
    mode: str = MODE
    max_steps: int | None = None
    min_separation: int = 1
    bisr_bandwidth: int | None = None
    sensitivity: float | None = None
    coefficient_hash: str | None = None
    sampling_probability: float | None = None
    batch_cap: int | None = None
    abandoned: int | None = None
    fixed_in_advance: bool = False
    attested_probability: float | None = None
    attested_epsilon: float | None = None
    """Of the run alone, if its client samples as it says; no budget binds on it."""


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
    def of(cls, tenant: str, domain: str, head: Head, runs: Mapping[str, AnyRecord]) -> DomainStatement:
        """From a head and the records of all its runs. Raises IntegrityError if one is missing."""
        named = {*head.runs, *head.dealt}
        if not named <= runs.keys():
            raise IntegrityError(f"privacy domain {domain} names runs that have no record")
        return cls(
            tenant=tenant,
            domain=domain,
            delta=head.delta,
            epsilon=stated_epsilon(head),
            steps=head.seq,
            head_hash=head.hash,
            runs=tuple(_run(run_id, head, runs[run_id]) for run_id in sorted(named)),
        )


def _run(run_id: str, head: Head, record: AnyRecord) -> RunStatement:
    if isinstance(record, DealtRecord):
        return _dealt_run(run_id, record)
    mechanism = record.mechanism
    return RunStatement(
        run_id=run_id,
        noise_multiplier=mechanism.noise_multiplier,
        participations=record.participations,
        max_participations=mechanism.max_participations,
        max_epsilon=mechanism.max_epsilon,
        steps=record.steps,
        epsilon=epsilon({run_id: head.runs[run_id]}, head.delta),
        mode=mechanism.mode,
        max_steps=mechanism.max_steps,
        min_separation=mechanism.min_separation,
        bisr_bandwidth=mechanism.bisr_bandwidth,
        sensitivity=mechanism.sensitivity,
        coefficient_hash=mechanism.coefficient_hash,
        fixed_in_advance=record.fixed_in_advance,
        attested_probability=mechanism.attested_probability,
        attested_epsilon=record.attested_epsilon,
    )


def _dealt_run(run_id: str, record: DealtRecord) -> RunStatement:
    mechanism = record.mechanism
    return RunStatement(
        run_id=run_id,
        noise_multiplier=mechanism.noise_multiplier,
        participations=None,
        max_participations=None,
        max_epsilon=mechanism.max_epsilon,
        steps=record.deals.dealt,
        epsilon=record.epsilon,
        mode=mechanism.mode,
        max_steps=mechanism.max_steps,
        sampling_probability=mechanism.sampling_probability,
        batch_cap=mechanism.batch_cap,
        abandoned=record.deals.abandoned,
        fixed_in_advance=mechanism.fixed_in_advance,
    )
