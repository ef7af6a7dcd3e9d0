"""Epsilon of Gaussian mechanisms composed over runs, and the integer limits that follow from it.

Neighbouring relation: add or remove one unit. If run r lets the unit into at most m_r releases, each a
Gaussian mechanism of noise multiplier sigma_r, the releases compose to exactly one Gaussian mechanism
with mu^2 = sum over r of m_r / sigma_r^2 (Dong, Roth and Su 2022, "Gaussian differential privacy",
Corollary 3.3), whatever the order and however each was chosen given the earlier ones, as long as the
sums are bounded in advance (Smith and Thakurta 2022, arXiv 2210.17520). Its epsilon at delta is that of
Balle and Wang 2018 (arXiv 1805.06530), Theorem 8, as computed by dp-accounting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from tensafe.contracts.errors import InvalidRequest

Participations = Mapping[str, tuple[float, int]]
"""Run id -> (noise multiplier sigma, largest participation count m of any unit)."""

ACCOUNTANT: Final = "dp-accounting/gaussian-mechanism/v1"
"""Names the computation in ledger rows; its meaning never changes."""
CORRELATED_ACCOUNTANT: Final = "dp-accounting/gaussian-mechanism/k-b-sensitivity/v1"
"""The same for a run of correlated noise, which counts as one release of noise multiplier sigma over its
sensitivity from its first step with a unit on."""

_RELATIVE_SLACK: Final = 1e-6
_ABSOLUTE_SLACK: Final = 1e-9
"""dp-accounting's root differs from the exact one (60 digits) by at most 3e-7 relative for mu from
1e-7 to 1e4 and delta from 1e-15 to 0.1, on either side; with the slack ours is never below it."""


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise InvalidRequest(f"delta must be between 0 and 1, got {delta!r}", field="delta")


def mu_squared(participations: Participations) -> float:
    """Sum of m / sigma^2 over the runs: the squared mean shift of the equivalent unit Gaussian."""
    terms = []
    for run_id, (sigma, count) in participations.items():
        if not (math.isfinite(sigma) and sigma > 0.0) or count < 0:
            raise InvalidRequest(
                f"run {run_id}: noise multiplier must be positive and the count not negative, "
                f"got {sigma!r} and {count!r}"
            )
        terms.append(count / sigma / sigma)
    return math.fsum(terms)


@lru_cache(maxsize=65536)
def _gaussian_epsilon(mu_2: float, delta: float) -> float:
    # Imported here: dp-accounting and scipy take a second, which only privacy work should pay.
    import numpy as np  # noqa: PLC0415
    from dp_accounting import gaussian_mechanism  # noqa: PLC0415

    if mu_2 == 0.0:
        return 0.0
    if not math.isfinite(mu_2):
        return math.inf
    with np.errstate(divide="ignore", over="ignore"):
        root = float(gaussian_mechanism.get_epsilon_gaussian(1.0 / math.sqrt(mu_2), delta))
    return root * (1.0 + _RELATIVE_SLACK) + _ABSOLUTE_SLACK


def epsilon(participations: Participations, delta: float) -> float:
    """Epsilon at `delta` of everything released about one unit; add-or-remove-one-unit adjacency.

    At least the exact value and at most 1 + 2e-6 times it (plus 2e-9). 0.0 when nothing was released.
    """
    _check_delta(delta)
    return _gaussian_epsilon(mu_squared(participations), delta)


def max_participations_within(
    max_epsilon: float, noise_multiplier: float, delta: float, *, others: Participations | None = None
) -> int:
    """Most participations of one unit in a run such that epsilon, `others` included, stays within.

    0 if not even one fits. Computed once per set of arguments, so that admission is an integer compare.
    """
    _check_delta(delta)
    mu_squared({"run": (noise_multiplier, 1)})
    return _max_participations(max_epsilon, noise_multiplier, delta, mu_squared(others or {}))


@lru_cache(maxsize=4096)
def _max_participations(max_epsilon: float, sigma: float, delta: float, spent: float) -> int:
    def fits(count: int) -> bool:
        return _gaussian_epsilon(math.fsum((spent, count / sigma / sigma)), delta) <= max_epsilon

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def noise_multiplier_for(
    target_epsilon: float, participations: int, delta: float, *, sensitivity: float = 1.0
) -> float:
    """Smallest noise multiplier, rounded up to 6 significant digits, that keeps within the target.

    `participations` is how often one unit may take part, `sensitivity` what each costs in units of the
    clipping norm (the whole run's, with one participation, for correlated noise). The result is checked
    with `epsilon`.
    """
    from dp_accounting import gaussian_mechanism  # noqa: PLC0415

    _check_delta(delta)
    if not target_epsilon > 0.0 or participations < 1:
        raise InvalidRequest(
            f"no noise gives epsilon {target_epsilon!r} for {participations!r} participations"
        )
    sigma = float(gaussian_mechanism.get_sigma_gaussian(target_epsilon, delta)) * math.sqrt(participations)
    sigma *= sensitivity
    exponent = math.floor(math.log10(sigma)) - 5
    digits = math.ceil(sigma / 10.0**exponent)
    while True:
        rounded = float(f"{digits}e{exponent}")
        if epsilon({"run": (rounded / sensitivity, participations)}, delta) <= target_epsilon:
            return rounded
        digits += 1
