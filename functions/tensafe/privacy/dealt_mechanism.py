"""The mechanism of a dealt run: every number frozen when the run is created.

Neighbouring relation: that of the domain's terms, zeroing out one unit or adding or removing one. Every step
releases the sum of the clipped gradients of the dealt units plus Gaussian noise (docs/privacy.md, "Dealt").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from tensafe.contracts.errors import BudgetExceeded, IntegrityError, InvalidRequest
from tensafe.contracts.training import WEAK_EPSILON, PrivateConfig
from tensafe.privacy import amplified
from tensafe.privacy.amplified import DealtGaussian, Spent
from tensafe.privacy.dealing import DealTerms, exact_probability
from tensafe.privacy.domain_records import Domain
from tensafe.privacy.refusals import naming_fields_of
from tensafe.privacy.units import MAX_UNITS_PER_STEP
from tensafe.storage.ports import JsonValue

DEALT_VERSION: Final = 3
"""Version of the stored form, and of ledger rows, of dealt runs. Its fields' meaning never changes."""
DEALT_MODE: Final = "dealt_truncated_poisson_gaussian"
ACCOUNTANT: Final = amplified.ACCOUNTANT
_ADD_OR_REMOVE: Final = "add_or_remove_one_unit"
_CAP_DEVIATIONS: Final = 10.0
_CAP_LEAST: Final = 40
"""Poisson tails are long for small means: P(more than m + 10 sqrt(m) + 40) < 1e-22 for every mean m."""


@dataclass(frozen=True, slots=True)
class DealtMechanism:
    """Public parameters of truncated Poisson sampling with Gaussian noise.

    `units`: N of the manifest that `manifest_digest` names. `sampling_probability`: q, a multiple of 2**-64.
    `batch_cap`: the most units of a step. `batch_size`: public constant that divides the noisy sum, whatever
    the real batch. `max_steps`: how many deals there may be; all of them are charged at the opening.
    `max_epsilon`: the run's own limit on the domain's epsilon, beside the domain's. `fixed_in_advance`: the
    owner's declaration that nothing released before had a part in choosing these numbers.
    """

    clip_norm: float
    noise_multiplier: float
    batch_size: int
    sampling_probability: float
    batch_cap: int
    max_steps: int
    delta: float
    domain: str
    units: int
    manifest_digest: str
    adjacency: str
    max_epsilon: float | None = None
    fixed_in_advance: bool = False
    reveal_non_dp: bool = False

    @property
    def version(self) -> int:
        return DEALT_VERSION

    @property
    def mode(self) -> str:
        """What ledger rows call it."""
        return DEALT_MODE

    @property
    def gaussian(self) -> DealtGaussian:
        """What one step costs; to add a unit makes N + 1 of N, and the larger counts."""
        units = self.units + (self.adjacency == _ADD_OR_REMOVE)
        return DealtGaussian(units, self.sampling_probability, self.batch_cap, self.noise_multiplier)

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of a step's noise on every coordinate of the sum."""
        return self.noise_multiplier * self.clip_norm

    def deal_terms(self, run_id: str) -> DealTerms:
        """The law of the run's deals, to which its seed is committed."""
        return DealTerms(run_id, self.manifest_digest, self.units, self.sampling_probability, self.batch_cap)

    def to_body(self) -> dict[str, JsonValue]:
        """JSON for durable storage; `from_body` returns an equal value."""
        return {"version": DEALT_VERSION, "mode": DEALT_MODE, **dataclasses.asdict(self)}

    @classmethod
    def from_body(cls, body: Mapping[str, JsonValue]) -> DealtMechanism:
        """Read what `to_body` wrote. Raises IntegrityError for another version, mode or field."""
        fields = {name: value for name, value in body.items() if name not in ("version", "mode")}
        try:
            numbers = {name: float(cast(float, fields[name])) for name in _FLOATS}
            mechanism = cls(**cast(dict[str, Any], {**fields, **numbers}))
            same = mechanism.to_body() == dict(body)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"the stored dealt mechanism is damaged: {error!r}") from error
        if not same:
            raise IntegrityError("not a stored dealt mechanism that this version reads")
        return mechanism


_FLOATS: Final = ("clip_norm", "noise_multiplier", "sampling_probability", "delta")


@naming_fields_of("optimizer")
def resolve_dealt(config: PrivateConfig, domain: Domain, spent: Spent) -> DealtMechanism:
    """Freeze a configuration beside what the domain's other runs may release; finds noise and steps.

    Takes seconds and up to some hundred MB (loss distributions): for the trainer, never for a request.
    Raises InvalidRequest (field `optimizer...`), BudgetExceeded if the run's whole charge does not fit.
    """
    if domain.manifest_digest is None:
        raise IntegrityError(f"privacy domain {domain.name} is open and has no manifest")
    if config.delta != domain.terms.delta:
        raise InvalidRequest(
            f"domain {domain.name} is registered with delta={domain.terms.delta!r}; its runs must use it: "
            "give it, or another domain",
            field="optimizer.delta",
        )
    q = exact_probability(config.sampling_probability or min(1.0, config.batch_size / domain.units))
    mechanism = DealtMechanism(
        clip_norm=config.clip_norm,
        noise_multiplier=config.noise_multiplier or amplified.MAX_SIGMA,
        batch_size=config.batch_size,
        sampling_probability=q,
        batch_cap=_cap(config, domain.units, q),
        max_steps=config.max_steps or amplified.MAX_STEPS,
        delta=config.delta,
        domain=config.domain,
        units=domain.units,
        manifest_digest=domain.manifest_digest,
        adjacency=domain.terms.adjacency,
        max_epsilon=config.max_epsilon,
        fixed_in_advance=config.fixed_in_advance,
        reveal_non_dp=config.reveal_non_dp,
    )
    if mechanism.max_steps > amplified.MAX_STEPS:
        raise InvalidRequest(
            f"a dealt run has at most {amplified.MAX_STEPS} steps; give max_steps within that",
            field="optimizer.max_steps",
        )
    mechanism = _with_noise(config, mechanism)
    mechanism = _with_steps(
        config, mechanism, min(config.max_epsilon or math.inf, domain.terms.max_epsilon), spent
    )
    if not config.allow_weak_privacy:
        _refuse_weak_privacy(mechanism)
    return mechanism


def wide_cap(units: int, q: float) -> int:
    """The batch cap of a run that names none: so many units that it practically never cuts a deal."""
    mean = q * units
    wide = math.ceil(mean + _CAP_DEVIATIONS * math.sqrt(mean) + _CAP_LEAST)
    return min(units, wide, MAX_UNITS_PER_STEP)


def _cap(config: PrivateConfig, units: int, q: float) -> int:
    mean = q * units
    if mean > MAX_UNITS_PER_STEP:
        raise InvalidRequest(
            f"deals would hold {mean:.0f} units on average; at most {MAX_UNITS_PER_STEP} fit into one: lower "
            "batch_size or sampling_probability",
            field="optimizer.batch_size",
        )
    if config.batch_cap is None:
        return wide_cap(units, q)
    if config.batch_cap > MAX_UNITS_PER_STEP or config.batch_cap < mean:
        raise InvalidRequest(
            f"batch_cap must be from the mean of a deal, {mean:.1f} units, to {MAX_UNITS_PER_STEP}; leave "
            "it out for one that practically never cuts a deal",
            field="optimizer.batch_cap",
        )
    return min(units, config.batch_cap)


def _with_noise(config: PrivateConfig, mechanism: DealtMechanism) -> DealtMechanism:
    if config.target_epsilon is None:
        return mechanism
    found = amplified.noise_multiplier_for(
        config.target_epsilon,
        mechanism.delta,
        units=mechanism.gaussian.units,
        sampling_probability=mechanism.sampling_probability,
        batch_cap=mechanism.batch_cap,
        steps=mechanism.max_steps,
    )
    return dataclasses.replace(mechanism, noise_multiplier=found)


def _with_steps(
    config: PrivateConfig, mechanism: DealtMechanism, limit: float, spent: Spent
) -> DealtMechanism:
    """Found once; whoever deals compares integers from then on."""
    gaussian, delta = mechanism.gaussian, mechanism.delta
    if config.max_steps is not None:
        total = amplified.total_epsilon(spent.plus(gaussian, config.max_steps), delta)
        if total <= limit:
            return mechanism
    fitting = amplified.max_steps(limit, gaussian, delta, spent)
    if config.max_steps is None and fitting:
        return dataclasses.replace(mechanism, max_steps=fitting)
    wanted = "a single deal" if config.max_steps is None else f"{config.max_steps} deals"
    advice = (
        f"; {fitting} would fit" if fitting else "; use a larger noise_multiplier or a smaller batch_size"
    )
    raise BudgetExceeded(
        f"domain {mechanism.domain} stands at epsilon {amplified.total_epsilon(spent, delta):.4f} and has no "
        f"room for {wanted} at noise_multiplier={mechanism.noise_multiplier:g} within max_epsilon={limit:g}"
        f"{advice}",
        field="optimizer.max_steps",
    )


def _refuse_weak_privacy(mechanism: DealtMechanism) -> None:
    bound = amplified.epsilon(mechanism.gaussian, mechanism.max_steps, mechanism.delta)
    if bound > WEAK_EPSILON:
        raise InvalidRequest(
            f"epsilon would be {bound:.4g} at delta={mechanism.delta:g} after {mechanism.max_steps} deals at "
            f"noise_multiplier={mechanism.noise_multiplier:g}, which protects nobody; use more noise or "
            "fewer steps, or allow_weak_privacy=true to accept it by name",
            field="optimizer.noise_multiplier",
        )
