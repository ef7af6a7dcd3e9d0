"""The auditor itself: its bound is valid, its estimate is right, and both see what they should."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from tests.support.privacy_audit.estimate import delta_of, epsilon_of, estimate_mu, mu_of
from tests.support.privacy_audit.one_run import correct_guesses, epsilon_lower_bound, p_value
from tests.unit.privacy.support import exact_delta


def test_guesses_are_the_extremes_of_the_scores() -> None:
    scores = np.array([0.1, 9.0, -5.0, 0.2, 7.0, -6.0])
    included = np.array([True, True, False, True, False, True])
    assert correct_guesses(scores, included, 2) == 1  # the highest is in; the lowest is in as well
    assert correct_guesses(scores, included, 4) == 2
    assert correct_guesses(scores, ~included, 4) == 2
    assert correct_guesses(included.astype(float), included, 6) == 5  # four are in and three are guessed so


def test_without_delta_the_p_value_is_the_binomial_tail() -> None:
    for correct, guesses, epsilon in [(60, 100, 0.2), (90, 100, 1.0), (100, 100, 3.0)]:
        success = math.exp(epsilon) / (1 + math.exp(epsilon))
        expected = stats.binomtest(correct, guesses, success, alternative="greater").pvalue
        assert p_value(correct, guesses, 5000, epsilon, 0.0) == pytest.approx(expected)


def test_the_part_of_delta_is_the_theorems() -> None:
    """Summed term by term in 40 digits."""
    correct, guesses, canaries, epsilon, delta = 13, 20, 300, 0.7, 1e-4
    with mpmath.workdps(40):
        success = mpmath.exp(epsilon) / (1 + mpmath.exp(epsilon))
        mass = [
            mpmath.binomial(guesses, k) * success**k * (1 - success) ** (guesses - k)
            for k in range(guesses + 1)
        ]
        alpha = max(mpmath.fsum(mass[correct - i : correct]) / i for i in range(1, correct + 1))
        expected = mpmath.fsum(mass[correct:]) + 2 * canaries * delta * alpha
    assert p_value(correct, guesses, canaries, epsilon, delta) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_randomised_response_is_bounded_in_95_of_100_runs_and_tightly(epsilon: float) -> None:
    """Pure epsilon-DP whose guesses are right exactly as often as the theorem allows."""
    rng = np.random.default_rng(int(epsilon * 10))
    bounds = []
    for _ in range(100):
        included = rng.random(1000) < 0.5
        told = included ^ (rng.random(1000) > 1 / (1 + math.exp(-epsilon)))
        scores = told + rng.random(1000) / 2  # ties broken at random
        bounds.append(epsilon_lower_bound(scores, included, 0.0, guesses=400))
    broken = sum(bound > epsilon for bound in bounds)
    assert broken <= stats.binom.ppf(0.999, 100, 0.05)
    assert np.median(bounds) > epsilon - 0.45


def test_scores_that_tell_nothing_give_no_bound() -> None:
    rng = np.random.default_rng(2)
    found = [
        epsilon_lower_bound(rng.normal(size=1000), rng.random(1000) < 0.5, 1e-5, guesses=200)
        for _ in range(100)
    ]
    assert sum(bound > 0 for bound in found) <= stats.binom.ppf(0.999, 100, 0.05)


@pytest.mark.parametrize("mu", [0.1, 0.3, 1.0, 3.0, 8.0])
def test_the_exact_gaussian_is_that_of_40_digits(mu: float) -> None:
    with mpmath.workdps(40):
        for epsilon in (0.1, 1.0, 5.0, 20.0):
            expected = float(exact_delta(mpmath.mpf(epsilon), mpmath.mpf(mu)))
            assert delta_of(epsilon, mu) == pytest.approx(expected, rel=1e-6, abs=1e-15)
    assert mu_of(epsilon_of(mu, 1e-5), 1e-5) == pytest.approx(mu, rel=1e-6)


@pytest.mark.parametrize("mu", [0.0, 0.3, 2.0])
def test_mu_is_estimated_without_bias_and_with_its_standard_error(mu: float) -> None:
    rng = np.random.default_rng(int(10 * mu))
    zs = []
    for _ in range(100):
        included = rng.random(1000) < 0.5
        zs.append(estimate_mu(5.0 + 3.0 * (mu * included + rng.normal(size=1000)), included).z_against(mu))
    assert abs(np.mean(zs)) < 4 / math.sqrt(100)
    assert 0.8 < np.std(zs) < 1.2
