"""The noise of a run's steps has the stated correlation, no other, and comes again from its key."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tensafe.contracts.errors import InvalidRequest
from tensafe.privacy.bisr import coefficients, strategy_column
from tensafe.privacy.noise import correlated_gaussian, gaussian, grid_spacing

KEY = bytes(range(32))
STEPS = 12
COUNT = 40_000
SD = 0.7


def fresh(index: int, count: int = COUNT, key: bytes = KEY) -> np.ndarray:
    return correlated_gaussian(key, index, (1.0,), count, SD)


@pytest.fixture(scope="module", params=[2, 4, 16])
def bandwidth(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def noise(bandwidth: int) -> np.ndarray:
    """float64 [STEPS, COUNT]."""
    weights = coefficients(bandwidth)
    return np.stack([correlated_gaussian(KEY, index, weights, COUNT, SD) for index in range(STEPS)])


def test_a_step_combines_the_fresh_noise_of_the_steps_before_it(noise: np.ndarray, bandwidth: int) -> None:
    """To the spacing of the grid: nothing is drawn anew, and nothing lies before the first step."""
    weights = coefficients(bandwidth)
    for index in range(STEPS):
        lags = range(min(bandwidth, index + 1))
        wanted = sum(weights[lag] * fresh(index - lag) for lag in lags)
        assert np.abs(noise[index] - wanted).max() <= 2 * grid_spacing(SD)


def test_the_covariance_is_that_of_the_coefficients(noise: np.ndarray, bandwidth: int) -> None:
    """Every pair of steps, against the exact covariance, in standard errors of its estimate."""
    band = np.zeros((STEPS, STEPS))
    for lag, weight in enumerate(coefficients(bandwidth)[:STEPS]):
        band += np.diag(np.full(STEPS - lag, weight), -lag)
    exact = SD**2 * band @ band.T
    found = noise @ noise.T / COUNT
    variances = np.diag(exact)
    errors = np.sqrt((np.outer(variances, variances) + exact**2) / COUNT)
    assert np.abs((found - exact) / errors).max() < 4.5
    assert np.abs(exact[1, 0] / errors[1, 0]) > 50, "a wrong sign or a missing term would be seen"


def test_undoing_the_correlation_leaves_white_gaussian_noise(noise: np.ndarray, bandwidth: int) -> None:
    """The strategy times the noise is what the accountant takes it for."""
    column = strategy_column(bandwidth, STEPS)
    white = np.stack(
        [sum(column[index - at] * noise[at] for at in range(index + 1)) for index in range(STEPS)]
    )
    samples = white.ravel() / SD
    assert stats.kstest(samples, "norm").pvalue > 1e-4
    squares = float((samples**2).sum())
    assert min(stats.chi2.cdf(squares, samples.size), stats.chi2.sf(squares, samples.size)) > 1e-4
    between = white @ white.T / COUNT / SD**2 - np.eye(STEPS)
    assert np.abs(between[np.tril_indices(STEPS, -1)]).max() < 4.5 / math.sqrt(COUNT)


def test_the_grid_is_that_of_the_fresh_noise(noise: np.ndarray) -> None:
    scaled = noise / grid_spacing(SD)
    assert (scaled == np.rint(scaled)).all()


def test_the_same_step_gives_the_same_bits_and_parts_equal_the_whole() -> None:
    weights = coefficients(4)
    whole = correlated_gaussian(KEY, 9, weights, 100_001, SD)
    assert correlated_gaussian(KEY, 9, weights, 100_001, SD).tobytes() == whole.tobytes()
    cuts = [0, 1, 2, 33_001, 65_536, 100_001]
    parts = [
        correlated_gaussian(KEY, 9, weights, end - begin, SD, offset=begin)
        for begin, end in itertools.pairwise(cuts)
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert correlated_gaussian(KEY, 9, weights, 0, SD).size == 0


def test_keys_and_kinds_of_noise_share_no_stream() -> None:
    """Another run, or a fork, which has another secret; and independent noise of the same number."""
    bound = 4.5 / math.sqrt(COUNT)
    others = [fresh(3, key=bytes(32)), gaussian(KEY, 3, COUNT, SD), fresh(4)]
    for other in others:
        assert abs(np.corrcoef(fresh(3), other)[0, 1]) < bound


def test_what_cannot_be_drawn_is_refused() -> None:
    for index, count, offset in ((-1, 1, 0), (2**63, 1, 0), (0, -1, 0), (0, 1, -1)):
        with pytest.raises(InvalidRequest):
            correlated_gaussian(KEY, index, (1.0,), count, SD, offset=offset)
    with pytest.raises(InvalidRequest):
        correlated_gaussian(KEY, 0, (1.0,), 1, 0.0)
    with pytest.raises(InvalidRequest):
        correlated_gaussian(KEY[:31], 0, (1.0,), 1, SD)
