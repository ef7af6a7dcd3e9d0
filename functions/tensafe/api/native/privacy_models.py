"""Requests and answers of `/v1/privacy/domains`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from tensafe.contracts.domains import MAX_MANIFEST_UNITS, DomainTerms
from tensafe.contracts.training import Strict
from tensafe.privacy.loops import Loop
from tensafe.privacy.planner import Option, Question, verdict
from tensafe.privacy.reading import Overview, Summary

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
State = Literal["registering", "open", "closed", "unregistered"]


class CreateDomain(DomainTerms):
    """A new privacy domain and its terms, which never change."""

    name: str = Field(min_length=1, max_length=128, pattern=NAME_PATTERN)

    def terms(self) -> DomainTerms:
        """The terms alone."""
        return DomainTerms(**self.model_dump(exclude={"name"}))


class FinishDomain(Strict):
    """Freeze the domain; with N or the root (hexadecimal), only if the service has the same."""

    units: int | None = Field(default=None, ge=1, le=MAX_MANIFEST_UNITS)
    root: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class DomainRun(Strict):
    """A run's part in a domain; `epsilon` of the run alone, of a dealt one with all its deals."""

    run_id: str
    mode: str
    epsilon: float
    steps: int
    participations: int | None
    max_participations: int | None
    noise_multiplier: float
    max_epsilon: float | None
    max_steps: int | None
    min_separation: int
    bisr_bandwidth: int | None
    sensitivity: float | None
    coefficient_hash: str | None
    sampling_probability: float | None
    batch_cap: int | None
    abandoned: int | None
    fixed_in_advance: bool
    attested_probability: float | None
    attested_epsilon: float | None


class PrivacyDomain(Strict):
    """A privacy domain: how it is registered, and what its runs have spent.

    `units` is N; `root` and `manifest_digest` say what the N units are, once it is finished. `epsilon` at
    `delta` of everything that all runs have released so far. `unregistered`: known by its name alone.
    """

    name: str
    state: State
    terms: DomainTerms | None
    units: int | None
    pages: int | None
    root: str | None
    manifest_digest: str | None
    warnings: list[str]
    created_ms: int | None
    closed_ms: int | None
    delta: float
    epsilon: float
    steps: int
    head_hash: str | None
    runs: list[DomainRun]

    @classmethod
    def of(cls, overview: Overview) -> PrivacyDomain:
        domain, spent = overview.registered, overview.spent
        told: dict[str, Any] = {
            "name": overview.name,
            "delta": overview.delta,
            "epsilon": spent.epsilon if spent else 0.0,
            "steps": spent.steps if spent else 0,
            "head_hash": spent.head_hash if spent else None,
            "runs": [asdict(run) for run in spent.runs] if spent else [],
            "state": domain.state if domain else "unregistered",
            "warnings": list(domain.warnings) if domain else [],
        }
        for name in ("terms", "units", "pages", "root", "manifest_digest", "created_ms", "closed_ms"):
            told[name] = getattr(domain, name) if domain else None
        return cls.model_validate(told)


class DomainSummary(Strict):
    """A privacy domain in a listing; `steps` and `runs` are numbers of them."""

    name: str
    state: State
    delta: float
    epsilon: float
    steps: int
    runs: int
    units: int | None
    max_epsilon: float | None
    warnings: list[str]

    @classmethod
    def of(cls, summary: Summary) -> DomainSummary:
        return cls.model_validate({**asdict(summary), "warnings": list(summary.warnings)})


class DomainList(Strict):
    """The tenant's domains by name; ask for more with `after` = the last name."""

    domains: list[DomainSummary]


class ContentKey(Strict):
    """The key of the domain's content hashes, 32 bytes in hexadecimal; keep it as you keep the data."""

    content_key: str


class LedgerRows(Strict):
    """Rows of a domain's ledger in order, each as it was hashed; ask for more with `after` = the last seq."""

    rows: list[dict[str, Any]]


class PlanOption(Strict):
    """One way to meet the target; `relative_error` (of sums over steps) is a proxy for utility.

    `honest_here`: whether its epsilon is true for the loop that was asked about. `settings`: what to write
    into a run's optimizer beside type, clip_norm and domain. `attested_epsilon`: if the client samples as it
    says.
    """

    name: str
    noise_multiplier: float
    prefix_error: float
    relative_error: float
    served: bool
    honest_for: str
    min_separation: int | None
    bisr_bandwidth: int | None
    attested_epsilon: float | None
    honest_here: bool
    settings: dict[str, Any]


class DomainPlan(Strict):
    """The noise that each mode needs for a training on the domain, and which is honest for the loop.

    `advised` names the honest option with the least error, None if none is served; `why` says it in words.
    """

    units: int
    batch_size: int
    epochs: int
    steps: int
    target_epsilon: float
    delta: float
    loop: Loop
    advised: str | None
    why: str
    warnings: list[str]
    options: list[PlanOption]

    @classmethod
    def of(
        cls, question: Question, options: tuple[Option, ...], loop: Loop, warnings: tuple[str, ...]
    ) -> DomainPlan:
        return cls.model_validate({**verdict(question, options, loop), "warnings": list(warnings)})
