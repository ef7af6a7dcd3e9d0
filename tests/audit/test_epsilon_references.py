"""Epsilon against two independent references: never below the true value, at most 1.02 times it.

How the true value is bounded: Opacus' PRV accountant convolves discretised loss variables (Gopi, Lee and
Wutschitz 2021, arXiv 2106.02848) and returns a lower and an upper bound, here less than 1 % apart; it does
not know that Gaussians compose to one. The closed form (Balle and Wang 2018, Theorem 8), our own in 40
digits, has to lie between the two. For Poisson sampling there is no closed form of many
steps: there the true value is known to within the two bounds, 0.5 % apart; of one step it is computed.
"""

from __future__ import annotations

import math
import warnings

import pytest
from scipy import optimize, stats

from tensafe.privacy import amplified
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.amplified import DealtGaussian
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


POISSON: list[tuple[float, float, int, float]] = [
    (1.0, 256 / 10_000, 117, 1e-5),
    (0.7, 1024 / 50_000, 147, 1e-5),
    (0.6, 512 / 100_000, 586, 1e-6),
    (2.0, 64 / 1000, 156, 1e-5),
    (0.8, 0.01, 300, 1e-5),
    (1.05, 0.01, 300, 1e-5),
    (3.0, 0.1, 1000, 1e-6),
    (1.0, 0.5, 10, 1e-5),
    (1.3, 0.02, 2000, 1e-7),
    (5.0, 0.2, 200, 1e-5),
    (0.5, 0.001, 1000, 1e-5),
    (20.0, 0.05, 100, 1e-5),
]
"""Noise multiplier, sampling probability, steps, delta."""


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


def uncapped(sigma: float, rate: float) -> DealtGaussian:
    """Dealt Poisson of 10,000 units with a cap that cuts no batch."""
    return DealtGaussian(10_000, rate, 10_000, sigma)


@pytest.mark.parametrize(("sigma", "rate", "steps", "delta"), POISSON)
def test_dealt_poisson(sigma: float, rate: float, steps: int, delta: float) -> None:
    """The bounds are asked for twice, the second time 1/400 of epsilon around the first answer."""
    rough, _ = prv_bounds([(sigma, rate, steps)], delta, 0.01)
    low, high = prv_bounds([(sigma, rate, steps)], delta, rough / 400)
    ours = amplified.epsilon(uncapped(sigma, rate), steps, delta)
    assert high <= 1.01 * low
    assert (low + high) / 2 <= ours <= 1.02 * low, (
        "PRV's estimate lies midway; its error is far below the bounds"
    )


def one_step_epsilon(sigma: float, rate: float, delta: float) -> float:
    """Exact epsilon of one Poisson-sampled Gaussian step: the larger of removing and adding the unit.

    P = (1 - q) N(0, s^2) + q N(1, s^2) against Q = N(0, s^2). Their density ratio grows with x, so the
    hockey-stick divergence is the difference of two tails beyond the x where it is e^epsilon, or below the x
    where it is e^-epsilon.
    """

    def beyond(epsilon: float, *, removing: bool) -> float:
        ratio = (
            math.expm1(epsilon if removing else -epsilon) / rate + 1.0
        )  # of N(1) and N(0), where it is met
        if ratio <= 0.0:
            return -delta  # adding: the ratio never gets so low
        x = sigma**2 * math.log(ratio) + 0.5
        far = stats.norm.sf if removing else stats.norm.cdf
        mixed = (1 - rate) * far(x / sigma) + rate * far((x - 1) / sigma)
        alone = far(x / sigma)
        divergence = mixed - math.exp(epsilon) * alone if removing else alone - math.exp(epsilon) * mixed
        return float(divergence) - delta

    found = []
    for removing in (True, False):
        if beyond(0.0, removing=removing) > 0:
            found.append(optimize.brentq(lambda e, r=removing: beyond(e, removing=r), 0.0, 50.0, xtol=1e-12))
    return float(max(found, default=0.0))


@pytest.mark.parametrize("delta", [1e-6, 1e-4])
@pytest.mark.parametrize(("sigma", "rate"), [(0.5, 0.01), (1.0, 0.1), (0.8, 0.5), (3.0, 0.3), (1.0, 1.0)])
def test_one_dealt_step_is_the_exact_one_rounded_up(sigma: float, rate: float, delta: float) -> None:
    exact = one_step_epsilon(sigma, rate, delta)
    if rate == 1.0:
        assert exact == pytest.approx(exact_epsilon(1 / sigma**2, delta), rel=1e-8)
    assert exact <= amplified.epsilon(uncapped(sigma, rate), 1, delta) <= 1.02 * exact
