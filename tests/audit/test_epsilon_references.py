"""Epsilon against two independent references: never below the true value, at most 1.02 times it.

How the true value is bounded: Opacus' PRV accountant convolves discretised loss variables (Gopi, Lee and
Wutschitz 2021, arXiv 2106.02848) and returns a lower and an upper bound, here less than 1 % apart; it does
not know that Gaussians compose to one. The closed form (Balle and Wang 2018, Theorem 8), our own in 40
digits, has to lie between the two.
"""

from __future__ import annotations

import warnings

import pytest

from tensafe.privacy.accountant import epsilon
from tests.unit.privacy.support import exact_epsilon

Runs = list[tuple[float, int]]
"""Noise multiplier and participations of each run of a domain."""

SETTINGS: list[tuple[Runs, float]] = [
    ([(1.0, 1)], 1e-5),
    ([(1.0, 3)], 1e-5),
    ([(1.0, 10)], 1e-5),
    ([(0.7, 3)], 1e-5),
    ([(0.6, 3)], 1e-6),
    ([(0.5, 1)], 1e-5),
    ([(2.0, 10)], 1e-5),
    ([(2.41, 3)], 1e-5),
    ([(1.04, 3)], 1e-5),
    ([(6.46, 3)], 1e-5),
    ([(15.5, 20)], 1e-5),
    ([(50.0, 200)], 1e-6),
    ([(20.0, 3)], 1e-3),
    ([(3.73, 1)], 1e-5),
    ([(4.0, 100)], 1e-7),
    ([(1.0, 1)] * 5, 1e-5),
    ([(1.0, 2), (2.0, 5)], 1e-5),
    ([(4.0, 20), (0.9, 1)], 1e-6),
    ([(8.0, 100), (1.3, 2), (3.0, 7)], 1e-8),
    ([(0.8, 1), (12.0, 40)], 1e-5),
]


def prv_bounds(history: list[tuple[float, float, int]], delta: float, error: float) -> tuple[float, float]:
    """Lower and upper bound of epsilon by Opacus; `history` holds (sigma, sampling rate, steps)."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = history
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        variable = accountant._get_dprv(eps_error=error, delta_error=delta / 1000)
        low, _, high = variable.compute_epsilon(delta, delta / 1000, error)
    return float(low), float(high)


def test_the_table_has_twenty_settings() -> None:
    assert len(SETTINGS) == 20


@pytest.mark.parametrize(("runs", "delta"), SETTINGS)
def test_bounded_participation(runs: Runs, delta: float) -> None:
    participations = {f"run-{number}": run for number, run in enumerate(runs)}
    ours = epsilon(participations, delta)
    exact = exact_epsilon(sum(count / sigma**2 for sigma, count in runs), delta)
    low, high = prv_bounds([(sigma, 1.0, count) for sigma, count in runs], delta, exact / 400)
    assert low <= exact <= high <= 1.01 * low, "the two references agree"
    assert exact <= ours <= 1.02 * exact
    assert ours <= 1.02 * low
