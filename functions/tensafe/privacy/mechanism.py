"""The mechanism of a private run: every number frozen when the run is created.

Neighbouring relation: add or remove one unit. Every step releases the sum of the units' clipped
gradients plus Gaussian noise; a unit takes part in at most `max_participations` steps of the run, any two
of them at least `min_separation` apart. The noise of the steps is independent, or correlated (`bisr`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.contracts.training import WEAK_EPSILON, PrivateConfig
from tensafe.privacy import amplified, bisr
from tensafe.privacy.accountant import (
    ACCOUNTANT,
    CORRELATED_ACCOUNTANT,
    epsilon,
    max_participations_within,
    noise_multiplier_for,
)
from tensafe.privacy.amplified import DealtGaussian
from tensafe.privacy.refusals import NOTHING_CHARGED, naming_fields_of, telling
from tensafe.storage.ports import JsonValue

MECHANISM_VERSIONS: Final = (1, 2, 4)
"""Versions of the stored form. The meaning of a published version's fields never changes.

Version 1 has independent noise and no separation, and is written for such mechanisms still; version 2
adds `min_separation`, `bisr_bandwidth`, `sensitivity` and `coefficient_hash`; version 4 is that with
`attested_probability`. Version 3 is that of dealt runs (dealt_mechanism.py)."""
ATTESTED_VERSION: Final = 4
MODE: Final = "bounded_participation_independent_gaussian"
BISR_MODE: Final = "bounded_participation_bisr_gaussian"
ADJACENCY: Final = "add_or_remove_one_unit"


@dataclass(frozen=True, slots=True)
class Mechanism:
    """Public parameters of bounded participation with Gaussian noise.

    `clip_norm`: L2 bound of one unit's contribution to a step's sum. `noise_multiplier`: standard
    deviation of a step's fresh noise over `clip_norm`. `batch_size`: public constant that divides the
    noisy sum, whatever the real batch. `max_participations`: steps that one unit may take part in, already
    the smaller of the configured limit and what fits into `max_steps`. `max_steps`, `max_epsilon`: None for
    no limit. `min_separation`: two steps of one unit are at least so many steps apart; 1 for no limit.
    `bisr_bandwidth`: how many fresh vectors a step's noise combines; None for independent noise.
    `sensitivity`: that of the whole run over `clip_norm`, computed once; None for independent noise.
    `attested_probability`: with which the client states to draw each unit into each step; nobody checks it.
    """

    clip_norm: float
    noise_multiplier: float
    batch_size: int
    max_participations: int
    delta: float
    domain: str
    max_steps: int | None = None
    max_epsilon: float | None = None
    min_separation: int = 1
    bisr_bandwidth: int | None = None
    sensitivity: float | None = None
    attested_probability: float | None = None

    @property
    def version(self) -> int:
        """The oldest version of the stored form, and of ledger rows, that can say this."""
        if self.attested_probability is not None:
            return ATTESTED_VERSION
        return 1 if self.min_separation == 1 and self.bisr_bandwidth is None else 2

    @property
    def mode(self) -> str:
        """What ledger rows call it."""
        return MODE if self.bisr_bandwidth is None else BISR_MODE

    @property
    def accountant(self) -> str:
        """The computation behind the epsilon in its rows."""
        return ACCOUNTANT if self.bisr_bandwidth is None else CORRELATED_ACCOUNTANT

    @property
    def coefficient_hash(self) -> str | None:
        """Names the fixed coefficients of correlated noise; None for independent noise."""
        return None if self.bisr_bandwidth is None else bisr.coefficient_hash(self.bisr_bandwidth)

    def accounted(self, participations: int) -> tuple[float, int]:
        """(noise multiplier, count) for the accountant once some unit has taken part so often.

        Independent noise: sigma, and one release per participation. Correlated noise is one mechanism:
        sigma over the run's sensitivity, charged whole as soon as any unit takes part.
        """
        if self.sensitivity is None:
            return self.noise_multiplier, participations
        return self.noise_multiplier / self.sensitivity, min(participations, 1)

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of a step's fresh noise on every coordinate of the sum."""
        return self.noise_multiplier * self.clip_norm

    def attested_epsilon(self, steps: int) -> float | None:
        """Epsilon of so many steps of this run alone if what is attested is true; None above 300 or if not.

        Neighbouring relation: zero out one unit, or add or remove one.
        """
        if self.attested_probability is None:
            return None
        # Without a cap N has no part in it.
        step = DealtGaussian(1, self.attested_probability, 1, self.noise_multiplier)
        found = amplified.epsilon(step, steps, self.delta)
        return found if math.isfinite(found) else None

    @property
    def epsilon_bound(self) -> float:
        """Epsilon at `delta` once a unit has taken part `max_participations` times; the run alone."""
        return epsilon({"run": self.accounted(self.max_participations)}, self.delta)

    def to_body(self) -> dict[str, JsonValue]:
        """JSON for durable storage; `from_body` returns an equal value."""
        body: dict[str, JsonValue] = {
            "version": self.version,
            "mode": self.mode,
            "adjacency": ADJACENCY,
            "clip_norm": self.clip_norm,
            "noise_multiplier": self.noise_multiplier,
            "batch_size": self.batch_size,
            "max_participations": self.max_participations,
            "delta": self.delta,
            "domain": self.domain,
            "max_steps": self.max_steps,
            "max_epsilon": self.max_epsilon,
        }
        if self.version > 1:
            body |= {
                "min_separation": self.min_separation,
                "bisr_bandwidth": self.bisr_bandwidth,
                "sensitivity": self.sensitivity,
                "coefficient_hash": self.coefficient_hash,
            }
        if self.version == ATTESTED_VERSION:
            body |= {"attested_probability": self.attested_probability}
        return body

    @classmethod
    def from_body(cls, body: Mapping[str, JsonValue]) -> Mechanism:
        """Read what `to_body` wrote. Raises IntegrityError for another version, mode or field."""
        stated = (body.get("version"), body.get("mode"), body.get("adjacency"))
        known = stated[0] in MECHANISM_VERSIONS and stated[1] in (MODE, BISR_MODE)
        if not known or stated[2] != ADJACENCY:
            raise IntegrityError(f"not a stored mechanism that this version reads: {stated}")
        try:
            mechanism = cls(
                clip_norm=float(cast(float, body["clip_norm"])),
                noise_multiplier=float(cast(float, body["noise_multiplier"])),
                batch_size=int(cast(int, body["batch_size"])),
                max_participations=int(cast(int, body["max_participations"])),
                delta=float(cast(float, body["delta"])),
                domain=str(body["domain"]),
                max_steps=_integer(body["max_steps"]),
                max_epsilon=_number(body["max_epsilon"]),
                min_separation=int(cast(int, body.get("min_separation", 1))),
                bisr_bandwidth=_integer(body.get("bisr_bandwidth")),
                sensitivity=_number(body.get("sensitivity")),
                attested_probability=_number(body.get("attested_probability")),
            )
            same = mechanism.to_body() == dict(body)
        except (KeyError, TypeError, ValueError, InvalidRequest) as error:
            raise IntegrityError(f"the stored mechanism is damaged: {error!r}") from error
        if not same or (mechanism.sensitivity is None) != (mechanism.bisr_bandwidth is None):
            raise IntegrityError("the stored mechanism holds fields that this version does not know")
        return mechanism


@telling(NOTHING_CHARGED)
@naming_fields_of("optimizer")
def resolve(config: PrivateConfig) -> Mechanism:
    """Freeze a configuration: calibrate the noise, and refuse what could not keep its promise.

    Raises InvalidRequest (field `optimizer...`) when epsilon after the allowed participations would pass
    100 without `allow_weak_privacy`, or when `max_epsilon` has no room for a single participation.
    """
    participations, apart = config.max_participations, config.min_separation
    if config.max_steps is not None:
        participations = bisr.most_participations(participations, apart, config.max_steps)
    sensitivity = _sensitivity(config, participations)
    mechanism = Mechanism(
        clip_norm=config.clip_norm,
        noise_multiplier=_noise_multiplier(config, participations, sensitivity),
        batch_size=config.batch_size,
        max_participations=participations,
        delta=config.delta,
        domain=config.domain,
        max_steps=config.max_steps,
        max_epsilon=config.max_epsilon,
        min_separation=apart,
        bisr_bandwidth=config.bisr_bandwidth,
        sensitivity=sensitivity,
        attested_probability=config.sampling_probability if config.mode == "attested" else None,
    )
    mechanism.attested_epsilon(1)  # refuses what cannot be computed, before anything is charged
    _refuse_unusable_budget(mechanism)
    if not config.allow_weak_privacy:
        _refuse_weak_privacy(mechanism)
    return mechanism


def _integer(value: JsonValue | None) -> int | None:
    return None if value is None else int(cast(int, value))


def _number(value: JsonValue | None) -> float | None:
    return None if value is None else float(cast(float, value))


def _sensitivity(config: PrivateConfig, participations: int) -> float | None:
    if config.bisr_bandwidth is None:
        return None
    assert config.max_steps is not None  # noqa: S101 - the model's validator holds it
    return bisr.sensitivity(
        config.bisr_bandwidth,
        steps=config.max_steps,
        participations=participations,
        min_separation=config.min_separation,
    )


def _noise_multiplier(config: PrivateConfig, participations: int, sensitivity: float | None) -> float:
    if config.noise_multiplier is not None:
        return config.noise_multiplier
    assert config.target_epsilon is not None  # noqa: S101 - the model's validator holds it
    if sensitivity is None:
        return noise_multiplier_for(config.target_epsilon, participations, config.delta)
    return noise_multiplier_for(config.target_epsilon, 1, config.delta, sensitivity=sensitivity)


def _refuse_unusable_budget(mechanism: Mechanism) -> None:
    limit = mechanism.max_epsilon
    if limit is None:
        return
    once = epsilon({"run": mechanism.accounted(1)}, mechanism.delta)
    if once > limit:
        whole = mechanism.sensitivity
        needed = noise_multiplier_for(limit, 1, mechanism.delta, sensitivity=whole or 1.0)
        costs = "one participation" if whole is None else "the whole run, charged before its first step,"
        raise InvalidRequest(
            f"max_epsilon={limit:g} admits no step: {costs} at noise_multiplier="
            f"{mechanism.noise_multiplier:g} and delta={mechanism.delta:g} costs epsilon {once:.4g}; "
            f"use noise_multiplier >= {needed:g} or max_epsilon >= {math.ceil(once * 100) / 100:.2f}",
            field="optimizer.max_epsilon",
        )


def _refuse_weak_privacy(mechanism: Mechanism) -> None:
    bound = mechanism.epsilon_bound
    if bound <= WEAK_EPSILON:
        return
    sigma, delta = mechanism.noise_multiplier, mechanism.delta
    if mechanism.sensitivity is None:
        needed = noise_multiplier_for(WEAK_EPSILON, mechanism.max_participations, delta)
        fewer = max_participations_within(WEAK_EPSILON, sigma, delta)
    else:
        needed, fewer = noise_multiplier_for(WEAK_EPSILON, 1, delta, sensitivity=mechanism.sensitivity), 0
    lower = f", max_participations <= {fewer}" if fewer else ""
    raise InvalidRequest(
        f"epsilon would be {bound:.4g} at delta={delta:g} after {mechanism.max_participations} "
        f"participation(s) of one unit at noise_multiplier={sigma:g}, which protects nobody; use "
        f"noise_multiplier >= {needed:g}{lower}, or allow_weak_privacy=true to accept it by name",
        field="optimizer.noise_multiplier",
    )
