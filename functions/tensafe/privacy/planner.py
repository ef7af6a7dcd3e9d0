"""Which noise a planned training needs in each mode, and what is left of the signal: pure computation.

The utility proxy is the root mean square error of the prefix sums of the clipped gradients, in units of
`clip_norm` per coordinate: what plain gradient descent would carry in its weights (the workload of the
matrix mechanism; Kalinin et al. 2025, arXiv 2505.12128, section 2). It is a proxy: it knows nothing of
Adam, of learning rates, or of how much noise a task bears.

Neighbouring relation: add or remove one unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import BISR_MAX_STEPS, WEAK_EPSILON
from tensafe.privacy import amplified
from tensafe.privacy.accountant import noise_multiplier_for
from tensafe.privacy.amplified import DealtGaussian
from tensafe.privacy.bisr import coefficients, sensitivity
from tensafe.privacy.dealing import exact_probability
from tensafe.privacy.dealt_mechanism import wide_cap
from tensafe.privacy.loops import ANY_LOOP, DEALT, FIXED_ORDER, HONEST, SAMPLED, WHY, Loop
from tensafe.privacy.units import MAX_UNITS_PER_STEP
from tensafe.storage.ports import JsonValue

BANDWIDTHS: Final = (2, 4, 8, 16, 32, 64)
"""What is tried; the smallest whose error is within GOOD_ENOUGH of the best is suggested."""
GOOD_ENOUGH: Final = 1.05
MAX_UNITS: Final = 10**9
_DEALT_NAME: Final = "dealt Poisson"
_DISCRETISATION: Final = 1e-3
_SIGMA_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Question:
    """A data set of `units` units, `epochs` passes over it in batches of `batch_size`, and a target."""

    units: int
    batch_size: int
    epochs: int
    target_epsilon: float
    delta: float

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.units // self.batch_size)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def sampling_probability(self) -> float:
        return min(1.0, self.batch_size / self.units)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to meet the target.

    `prefix_error` is the proxy, per coordinate over `clip_norm`; `relative_error` is it over that of
    Poisson-sampled DP-SGD. `served`: whether this service runs it so. `honest_for` says in which
    training loop its epsilon is true. `min_separation`, `bisr_bandwidth`: what to configure, if anything.
    `attested_epsilon`: the second number of an attested run, which nothing checks.
    """

    name: str
    noise_multiplier: float
    prefix_error: float
    relative_error: float
    served: bool
    honest_for: str
    min_separation: int | None = None
    bisr_bandwidth: int | None = None
    attested_epsilon: float | None = None


def default_delta(units: int) -> float:
    """The smaller of 1e-5 and units to the power of -1.1."""
    return min(1e-5, float(units**-1.1))


def plan(question: Question) -> tuple[Option, ...]:
    """Every mode's noise for the same target, Poisson last. Raises InvalidRequest naming the argument."""
    _check(question)
    poisson, dealable = _dealt_noise(question)
    fits = question.batch_size <= MAX_UNITS_PER_STEP
    baseline = poisson * prefix_error(1, question.steps)
    epochs = question.epochs
    sigma = noise_multiplier_for(question.target_epsilon, epochs, question.delta)
    error = sigma * prefix_error(1, question.steps)
    options = [
        Option("bounded, independent", sigma, error, error / baseline, fits, ANY_LOOP),
        _bisr(question, baseline, "bounded, bisr, reshuffled", 1, ANY_LOOP) if epochs > 1 else None,
        _bisr(question, baseline, *_kept_order(question)),
        _attested(question, sigma, error, error / baseline),
        Option(_DEALT_NAME, poisson, baseline, 1.0, served=dealable, honest_for=DEALT),
    ]
    return tuple(option for option in options if option is not None)


def settings_of(option: Option, question: Question) -> dict[str, JsonValue]:
    """What to write into a run's optimizer to get the option, beside type, clip_norm and domain."""
    settings: dict[str, JsonValue] = {
        "mode": {DEALT: "dealt", SAMPLED: "attested"}.get(option.honest_for, "bounded"),
        "noise_multiplier": option.noise_multiplier,
        "delta": question.delta,
        "batch_size": question.batch_size,
        "max_steps": question.steps,
    }
    if option.honest_for != DEALT:
        settings["max_participations"] = question.epochs
    if option.honest_for == SAMPLED:
        settings["sampling_probability"] = question.sampling_probability
    if option.bisr_bandwidth is not None:
        settings |= {
            "min_separation": option.min_separation,
            "noise": "bisr",
            "bisr_bandwidth": option.bisr_bandwidth,
        }
    return settings


def is_honest(option: Option, loop: Loop) -> bool:
    """Whether the option's epsilon is true for the loop."""
    return option.honest_for in HONEST[loop]


def advised(options: Sequence[Option], loop: Loop) -> Option | None:
    """Of what is served and honest for the loop, the one with the least error; None if nothing is."""
    fitting = [option for option in options if option.served and is_honest(option, loop)]
    return min(fitting, key=lambda option: option.prefix_error, default=None)


def verdict(question: Question, options: Sequence[Option], loop: Loop) -> dict[str, Any]:
    """The plan as it is told: what was asked, which option is honest for the loop and which is advised."""
    chosen = advised(options, loop)
    return {
        **asdict(question),
        "steps": question.steps,
        "loop": loop.value,
        "advised": None if chosen is None else chosen.name,
        "why": WHY[loop],
        "options": [
            {
                **asdict(option),
                "honest_here": is_honest(option, loop),
                "settings": settings_of(option, question),
            }
            for option in options
        ],
    }


def _kept_order(question: Question) -> tuple[str, int, str]:
    """With one epoch there is but one order, and no unit returns."""
    if question.epochs == 1:
        return "bounded, bisr", 1, ANY_LOOP
    return "bounded, bisr, fixed order", question.steps_per_epoch, FIXED_ORDER


def prefix_error(bandwidth: int, steps: int) -> float:
    """RMS over t < steps of the error of the sum of the first t + 1 steps, for noise multiplier 1.

    The noise in that sum is sum over i <= t of g_i z_{t-i}, with g_i = c_0 + ... + c_i.
    """
    sums = np.cumsum(coefficients(bandwidth))
    head = min(bandwidth, steps)
    remaining = steps - np.arange(head, dtype=np.float64)
    total = float(np.sum(sums[:head] ** 2 * remaining))
    tail = steps - head
    total += float(sums[-1]) ** 2 * tail * (tail + 1) / 2
    return math.sqrt(total / steps)


def _bisr(question: Question, baseline: float, name: str, apart: int, honest_for: str) -> Option | None:
    """The suggested bandwidth; None if the run is too short for any."""
    steps = question.steps
    found = []
    for bandwidth in (one for one in BANDWIDTHS if one <= steps):
        whole = sensitivity(bandwidth, steps=steps, participations=question.epochs, min_separation=apart)
        sigma = noise_multiplier_for(question.target_epsilon, 1, question.delta, sensitivity=whole)
        found.append((sigma * prefix_error(bandwidth, steps), bandwidth, sigma))
    if not found:
        return None
    best = min(error for error, _, _ in found)
    error, bandwidth, sigma = next(one for one in found if one[0] <= best * GOOD_ENOUGH)
    served = question.batch_size <= MAX_UNITS_PER_STEP
    return Option(name, sigma, error, error / baseline, served, honest_for, apart, bandwidth)


def _attested(question: Question, sigma: float, error: float, relative: float) -> Option:
    """Bounded with independent noise, and epsilon of what the client says beside it."""
    promised, served = None, question.batch_size <= MAX_UNITS_PER_STEP
    try:
        step = DealtGaussian(1, question.sampling_probability, 1, sigma)  # without a cap N has no part in it
        found = amplified.epsilon(step, question.steps, question.delta)
        promised = found if math.isfinite(found) else None
    except InvalidRequest:
        served = False  # a run is refused for the same reason
    return Option("attested", sigma, error, relative, served, SAMPLED, attested_epsilon=promised)


def _dealt_noise(question: Question) -> tuple[float, bool]:
    """The noise that a dealt run finds for the target; of plain Poisson sampling, and False, if it cannot be.

    A run that is created with it is charged at most the target.
    """
    q = exact_probability(question.sampling_probability)
    cap = wide_cap(question.units, q)
    if question.batch_size <= MAX_UNITS_PER_STEP:
        try:
            found = amplified.noise_multiplier_for(
                question.target_epsilon,
                question.delta,
                units=question.units,
                sampling_probability=q,
                # A wide cap costs nothing, and without one every trial is computed once, not twice.
                batch_cap=cap if cap == MAX_UNITS_PER_STEP else question.units,
                steps=question.steps,
            )
        except InvalidRequest:  # delta is below what loss distributions resolve
            return _poisson_noise(question), False
        return found, True
    return _poisson_noise(question), False


def _poisson_noise(question: Question) -> float:
    """Noise multiplier of DP-SGD with Poisson sampling at rate batch_size / units, by PLD, rounded up."""
    import dp_accounting  # noqa: PLC0415
    from dp_accounting import pld  # noqa: PLC0415

    rate = question.sampling_probability

    def fits(sigma: float) -> bool:
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
        accountant = pld.PLDAccountant(value_discretization_interval=_DISCRETISATION)
        accountant.compose(event, question.steps)
        return float(accountant.get_epsilon(question.delta)) <= question.target_epsilon

    # Without amplification it is never more than if every unit were in every step.
    high = noise_multiplier_for(question.target_epsilon, question.steps, question.delta)
    low = high / 2
    while low > 1e-2 and fits(low):
        low, high = low / 2, low
    while high / low > 1 + _SIGMA_TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _check(question: Question) -> None:
    if not 1 <= question.units <= MAX_UNITS:
        raise InvalidRequest(f"units must be from 1 to {MAX_UNITS}", field="units")
    if not 1 <= question.batch_size <= question.units:
        raise InvalidRequest("batch_size must be from 1 to the number of units", field="batch_size")
    if question.epochs < 1 or question.steps > BISR_MAX_STEPS:
        raise InvalidRequest(
            f"epochs must be at least 1, and all steps together at most {BISR_MAX_STEPS}; "
            f"this would be {question.steps}",
            field="epochs",
        )
    if not 0.01 <= question.target_epsilon <= WEAK_EPSILON:
        raise InvalidRequest(f"epsilon must be from 0.01 to {WEAK_EPSILON:g}", field="epsilon")
    if not 1e-15 <= question.delta <= 1e-2:
        raise InvalidRequest("delta must be from 1e-15 to 0.01", field="delta")
