"""The mechanism of a private run: every number frozen when the run is created.

Neighbouring relation: add or remove one unit. Every step releases the sum of the units' clipped
gradients plus Gaussian noise; a unit takes part in at most `max_participations` steps of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.contracts.training import WEAK_EPSILON, DpAdamWConfig
from tensafe.privacy.accountant import epsilon, max_participations_within, noise_multiplier_for
from tensafe.storage.ports import JsonValue

MECHANISM_VERSION: Final = 1
"""Version of the stored form. The meaning of a published version's fields never changes."""
MODE: Final = "bounded_participation_independent_gaussian"
ADJACENCY: Final = "add_or_remove_one_unit"


@dataclass(frozen=True, slots=True)
class Mechanism:
    """Public parameters of bounded participation with independent Gaussian noise.

    `clip_norm`: L2 bound of one unit's contribution to a step's sum. `noise_multiplier`: standard
    deviation of the noise over `clip_norm`. `batch_size`: public constant that divides the noisy sum,
    whatever the real batch. `max_participations`: steps that one unit may take part in, already the
    smaller of the configured limit and `max_steps`. `max_steps`, `max_epsilon`: None for no limit.
    """

    clip_norm: float
    noise_multiplier: float
    batch_size: int
    max_participations: int
    delta: float
    domain: str
    max_steps: int | None = None
    max_epsilon: float | None = None

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of the noise on every coordinate of the sum."""
        return self.noise_multiplier * self.clip_norm

    @property
    def epsilon_bound(self) -> float:
        """Epsilon at `delta` once a unit has taken part `max_participations` times; the run alone."""
        return epsilon({"run": (self.noise_multiplier, self.max_participations)}, self.delta)

    def to_body(self) -> dict[str, JsonValue]:
        """JSON for durable storage; `from_body` returns an equal value."""
        return {
            "version": MECHANISM_VERSION,
            "mode": MODE,
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

    @classmethod
    def from_body(cls, body: Mapping[str, JsonValue]) -> Mechanism:
        """Read what `to_body` wrote. Raises IntegrityError for another version, mode or field."""
        stated = (body.get("version"), body.get("mode"), body.get("adjacency"))
        if stated != (MECHANISM_VERSION, MODE, ADJACENCY):
            raise IntegrityError(f"not a stored mechanism that this version reads: {stated}")
        try:
            mechanism = cls(
                clip_norm=float(cast(float, body["clip_norm"])),
                noise_multiplier=float(cast(float, body["noise_multiplier"])),
                batch_size=int(cast(int, body["batch_size"])),
                max_participations=int(cast(int, body["max_participations"])),
                delta=float(cast(float, body["delta"])),
                domain=str(body["domain"]),
                max_steps=None if body["max_steps"] is None else int(cast(int, body["max_steps"])),
                max_epsilon=None if body["max_epsilon"] is None else float(cast(float, body["max_epsilon"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"the stored mechanism is damaged: {error!r}") from error
        if mechanism.to_body() != dict(body):
            raise IntegrityError("the stored mechanism holds fields that this version does not know")
        return mechanism


def resolve(config: DpAdamWConfig) -> Mechanism:
    """Freeze a configuration: calibrate the noise, and refuse what could not keep its promise.

    Raises InvalidRequest (field `optimizer...`) when epsilon after the allowed participations would pass
    100 without `allow_weak_privacy`, or when `max_epsilon` has no room for a single participation.
    """
    participations = config.max_participations
    if config.max_steps is not None:
        participations = min(participations, config.max_steps)
    mechanism = Mechanism(
        clip_norm=config.clip_norm,
        noise_multiplier=_noise_multiplier(config, participations),
        batch_size=config.batch_size,
        max_participations=participations,
        delta=config.delta,
        domain=config.domain,
        max_steps=config.max_steps,
        max_epsilon=config.max_epsilon,
    )
    _refuse_unusable_budget(mechanism)
    if not config.allow_weak_privacy:
        _refuse_weak_privacy(mechanism)
    return mechanism


def _noise_multiplier(config: DpAdamWConfig, participations: int) -> float:
    if config.noise_multiplier is not None:
        return config.noise_multiplier
    assert config.target_epsilon is not None  # noqa: S101 - the model's validator holds it
    return noise_multiplier_for(config.target_epsilon, participations, config.delta)


def _refuse_unusable_budget(mechanism: Mechanism) -> None:
    limit = mechanism.max_epsilon
    if limit is None:
        return
    once = epsilon({"run": (mechanism.noise_multiplier, 1)}, mechanism.delta)
    if once > limit:
        needed = noise_multiplier_for(limit, 1, mechanism.delta)
        raise InvalidRequest(
            f"max_epsilon={limit:g} admits no step: one participation at noise_multiplier="
            f"{mechanism.noise_multiplier:g} and delta={mechanism.delta:g} costs epsilon {once:.4g}; "
            f"use noise_multiplier >= {needed:g} or max_epsilon >= {math.ceil(once * 100) / 100:.2f}",
            field="optimizer.max_epsilon",
        )


def _refuse_weak_privacy(mechanism: Mechanism) -> None:
    bound = mechanism.epsilon_bound
    if bound <= WEAK_EPSILON:
        return
    sigma, delta = mechanism.noise_multiplier, mechanism.delta
    needed = noise_multiplier_for(WEAK_EPSILON, mechanism.max_participations, delta)
    fewer = max_participations_within(WEAK_EPSILON, sigma, delta)
    lower = f", max_participations <= {fewer}" if fewer else ""
    raise InvalidRequest(
        f"epsilon would be {bound:.4g} at delta={delta:g} after {mechanism.max_participations} "
        f"participation(s) of one unit at noise_multiplier={sigma:g}, which protects nobody; use "
        f"noise_multiplier >= {needed:g}{lower}, or allow_weak_privacy=true to accept it by name",
        field="optimizer.noise_multiplier",
    )
