"""The coefficients are those of a square root, and the sensitivity is what brute force finds."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import InvalidRequest
from tensafe.privacy.bisr import (
    coefficient_hash,
    coefficients,
    most_participations,
    sensitivity,
    strategy_column,
)


def toeplitz(column: np.ndarray) -> np.ndarray:
    """Lower triangular, float64 [n, n]."""
    size = len(column)
    return np.array([[column[i - j] if i >= j else 0.0 for j in range(size)] for i in range(size)])


def schedules(steps: int, most: int, apart: int) -> list[tuple[int, ...]]:
    """Every set of at most `most` steps of which any two are `apart` or more apart."""
    return [
        chosen
        for count in range(1, most + 1)
        for chosen in itertools.combinations(range(steps), count)
        if all(after - before >= apart for before, after in itertools.pairwise(chosen))
    ]


@pytest.mark.parametrize("bandwidth", [1, 2, 3, 8, 20])
def test_the_square_of_the_coefficients_is_one_minus_x(bandwidth: int) -> None:
    weights = np.array(coefficients(bandwidth))
    square = np.convolve(weights, weights)[:bandwidth]
    wanted = np.array([1.0, -1.0, *[0.0] * bandwidth])[:bandwidth]
    assert np.abs(square - wanted).max() < 1e-15


def test_the_stored_hash_of_the_coefficients_never_changes() -> None:
    assert coefficients(4) == (1.0, -0.5, -0.125, -0.0625)
    assert coefficient_hash(4) == HASH_OF_FOUR
    assert coefficient_hash(5) != HASH_OF_FOUR


HASH_OF_FOUR = "92678a8dcdadd5ef8568c05a633ee6dac56f35f4e3eb4f9cf557ebd69befd0d9"


@pytest.mark.parametrize("bandwidth", [1, 2, 3, 7, 64, 256])
def test_the_strategy_is_the_inverse_and_its_column_falls(bandwidth: int) -> None:
    """Not negative and not growing: the conditions under which the sensitivity holds."""
    steps = 600
    column = strategy_column(bandwidth, steps)
    band = np.zeros(steps)
    band[:bandwidth] = coefficients(bandwidth)
    assert np.abs(np.convolve(column, band)[1:steps]).max() < 1e-14
    assert column[0] == 1.0
    assert (column >= 0).all()
    assert (np.diff(column) <= 1e-16).all()


@given(
    bandwidth=st.integers(1, 9),
    steps=st.integers(1, 9),
    most=st.integers(1, 4),
    apart=st.integers(1, 5),
)
def test_the_sensitivity_is_that_of_the_worst_schedule(
    bandwidth: int, steps: int, most: int, apart: int
) -> None:
    """Bandwidths on both sides of the separation and of the number of steps."""
    strategy = toeplitz(strategy_column(bandwidth, steps))
    worst = max(
        float(np.linalg.norm(strategy[:, list(chosen)].sum(1))) for chosen in schedules(steps, most, apart)
    )
    fitting = most_participations(most, apart, steps)
    ours = sensitivity(bandwidth, steps=steps, participations=fitting, min_separation=apart)
    assert worst <= ours <= worst * 1.000002


@given(st.data())
def test_no_contributions_of_any_direction_do_more(data: st.DataObject) -> None:
    """A unit may send another gradient, of any direction and norm up to the bound, at each of its steps."""
    bandwidth, steps, most, apart = (data.draw(st.integers(1, top)) for top in (8, 8, 3, 4))
    chosen = data.draw(st.sampled_from(schedules(steps, most, apart)))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    moved = np.zeros((steps, 3))
    for step in chosen:
        direction = rng.normal(size=3)
        moved[step] = direction / np.linalg.norm(direction) * rng.choice([1.0, 1.0, 0.3])
    distance = float(np.linalg.norm(toeplitz(strategy_column(bandwidth, steps)) @ moved))
    fitting = most_participations(most, apart, steps)
    ours = sensitivity(bandwidth, steps=steps, participations=fitting, min_separation=apart)
    assert distance <= ours


@pytest.mark.parametrize("count", [1, 3, 50])
def test_independent_noise_costs_the_root_of_the_participations(count: int) -> None:
    ours = sensitivity(1, steps=100, participations=count, min_separation=2)
    assert ours == pytest.approx(math.sqrt(count), rel=2e-6)
    assert ours > math.sqrt(count)


def test_a_long_run_agrees_with_the_plain_sum_of_columns() -> None:
    steps, count, apart, bandwidth = 5000, 37, 131, 16
    column = strategy_column(bandwidth, steps)
    total = np.zeros(steps)
    for number in range(count):
        total[number * apart :] += column[: steps - number * apart]
    ours = sensitivity(bandwidth, steps=steps, participations=count, min_separation=apart)
    assert ours == pytest.approx(float(np.linalg.norm(total)), rel=2e-6)


def test_the_longest_run_is_computed_at_once() -> None:
    began = time.process_time()
    sensitivity(256, steps=1_000_000, participations=1_000_000, min_separation=1)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"participations": 3, "min_separation": 5, "steps": 10}, "optimizer.max_participations"),
        ({"participations": 0, "min_separation": 1, "steps": 10}, "optimizer.max_participations"),
        ({"participations": 1, "min_separation": 0, "steps": 10}, "optimizer.max_participations"),
        ({"participations": 1, "min_separation": 1, "steps": 0}, "optimizer.max_steps"),
        ({"participations": 1, "min_separation": 1, "steps": 1_000_001}, "optimizer.max_steps"),
    ],
)
def test_what_the_formula_does_not_cover_is_refused(settings: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sensitivity(4, **settings)
    assert caught.value.field == field


@pytest.mark.parametrize("bandwidth", [0, 257])
def test_a_bandwidth_out_of_range_is_refused(bandwidth: int) -> None:
    with pytest.raises(InvalidRequest, match="bandwidth"):
        coefficients(bandwidth)
    with pytest.raises(InvalidRequest, match="bandwidth"):
        sensitivity(bandwidth, steps=10, participations=1, min_separation=1)
