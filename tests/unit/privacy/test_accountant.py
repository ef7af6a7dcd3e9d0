"""Epsilon is never below the exact value and hardly above it."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from tensafe.contracts.errors import InvalidRequest
from tensafe.privacy.accountant import epsilon, max_participations_within, noise_multiplier_for
from tests.unit.privacy.support import exact_epsilon

SETTINGS = [
    ({"a": (1.0, 1)}, 1e-5),
    ({"a": (1.0, 3)}, 1e-5),
    ({"a": (0.7, 3)}, 1e-5),
    ({"a": (1.0, 10)}, 1e-5),
    ({"a": (0.6, 3)}, 1e-6),
    ({"a": (2.0, 10)}, 1e-5),
    ({"a": (6.46, 3)}, 1e-5),
    ({"a": (50.0, 1)}, 1e-6),
    ({"a": (100.0, 1000)}, 1e-7),
    ({"a": (0.3, 1)}, 1e-5),
    ({"a": (0.2, 2)}, 1e-4),
    ({"a": (1.0, 1), "b": (1.0, 1), "c": (1.0, 1), "d": (1.0, 1), "e": (1.0, 1)}, 1e-5),
    ({"a": (1.0, 2), "b": (2.0, 5)}, 1e-5),
    ({"a": (4.0, 20), "b": (0.9, 1)}, 1e-6),
    ({"a": (8.0, 100), "b": (1.3, 2), "c": (3.0, 7)}, 1e-8),
    ({"a": (20.0, 3)}, 1e-3),
    ({"a": (30.0, 1)}, 1e-10),
    ({"a": (1.5, 4), "b": (1.5, 4)}, 1e-9),
    ({"a": (0.8, 1), "b": (12.0, 40)}, 1e-5),
    ({"a": (3.3, 6), "empty": (1.0, 0)}, 1e-5),
]


@pytest.mark.parametrize(("runs", "delta"), SETTINGS)
def test_epsilon_is_the_exact_one_rounded_up(runs: dict[str, tuple[float, int]], delta: float) -> None:
    exact = exact_epsilon(sum(count / sigma**2 for sigma, count in runs.values()), delta)
    assert exact <= epsilon(runs, delta) <= exact * 1.00001 + 3e-9


@pytest.mark.parametrize(("runs", "delta"), SETTINGS)
def test_epsilon_agrees_with_numeric_composition(runs: dict[str, tuple[float, int]], delta: float) -> None:
    """Loss distributions convolved run by run: it does not know that Gaussians compose to one."""
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    for sigma, count in runs.values():
        if count:
            accountant.compose(GaussianDpEvent(sigma), count)
    pld = float(accountant.get_epsilon(delta))
    assert pld * 0.995 - 1e-3 <= epsilon(runs, delta) <= pld * 1.02 + 1e-3


@pytest.mark.parametrize("mu", [1e-7, 1e-5, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e4])
@pytest.mark.parametrize("delta", [1e-15, 1e-9, 1e-5, 0.1])
def test_extremes_are_bounded_too(mu: float, delta: float) -> None:
    exact = exact_epsilon(mu * mu, delta, digits=60)
    ours = epsilon({"a": (1 / mu, 1)}, delta)
    assert exact <= ours <= exact * 1.001 + 3e-9


def test_known_values() -> None:
    assert epsilon({"a": (1.0, 1)}, 1e-5) == pytest.approx(4.377, abs=1e-3)
    reruns = {f"run-{n}": (1.0, 1) for n in range(5)}
    assert epsilon(reruns, 1e-5) == pytest.approx(epsilon({"a": (1.0, 5)}, 1e-5))
    assert epsilon(reruns, 1e-5) == pytest.approx(11.480, abs=1e-3)
    assert epsilon({}, 1e-5) == 0.0
    assert epsilon({"a": (1.0, 0)}, 1e-5) == 0.0


def test_planted_bugs_are_far_outside_the_tolerance() -> None:
    """The formulas of the earlier system: ln(1.25/delta) per step, and mu growing with sqrt wrongly."""
    ours = epsilon({"a": (1.0, 1)}, 1e-5)
    assert math.sqrt(2 * math.log(1.25 / 1e-5)) > ours * 1.02
    assert epsilon({"a": (1.0, 4)}, 1e-5) != pytest.approx(4 * ours, rel=0.02)
    assert epsilon({"a": (1.0, 4)}, 1e-5) != pytest.approx(2 * ours, rel=0.02)


@settings(max_examples=60, deadline=None)
@given(
    sigma=st.floats(0.05, 1e3),
    count=st.integers(0, 10_000),
    more=st.integers(1, 100),
    other=st.integers(0, 50),
    delta=st.sampled_from([1e-9, 1e-6, 1e-5, 1e-3]),
)
def test_more_is_never_cheaper(sigma: float, count: int, more: int, other: int, delta: float) -> None:
    base = {"a": (sigma, count), "b": (2.0, other)}
    assert epsilon({**base, "a": (sigma, count + more)}, delta) >= epsilon(base, delta)
    assert epsilon({**base, "c": (5.0, more)}, delta) >= epsilon(base, delta)
    assert epsilon(base, delta) >= epsilon(base, delta * 1.5)


@pytest.mark.parametrize(("limit", "sigma"), [(4.4, 1.0), (8.0, 1.0), (3.0, 2.41), (1.0, 6.46), (50.0, 0.5)])
def test_the_integer_limit_is_the_last_that_fits(limit: float, sigma: float) -> None:
    for others in ({}, {"b": (4.0, 3)}):
        most = max_participations_within(limit, sigma, 1e-5, others=others)
        if most:
            assert epsilon({**others, "a": (sigma, most)}, 1e-5) <= limit
        assert epsilon({**others, "a": (sigma, most + 1)}, 1e-5) > limit


def test_nothing_fits_in_too_small_a_budget() -> None:
    assert max_participations_within(4.3, 1.0, 1e-5) == 0
    assert max_participations_within(4.4, 1.0, 1e-5) == 1
    assert max_participations_within(4.4, 1.0, 1e-5, others={"b": (1.0, 1)}) == 0


@pytest.mark.parametrize(
    ("target", "count"), [(1.0, 3), (3.0, 3), (8.0, 3), (8.0, 1), (100.0, 1), (0.01, 10_000), (1e4, 1)]
)
def test_calibration_rounds_towards_privacy(target: float, count: int) -> None:
    sigma = noise_multiplier_for(target, count, 1e-5)
    assert exact_epsilon(count / sigma**2, 1e-5) <= target
    assert exact_epsilon(count / (sigma * (1 - 3e-5)) ** 2, 1e-5) > target


def test_calibration_meets_the_published_figures() -> None:
    """67k examples, 3 epochs: sigma of 2.41 (epsilon 3) and 1.04 (epsilon 8) at delta=1e-5."""
    assert noise_multiplier_for(1.0, 3, 1e-5) == pytest.approx(6.46, abs=0.01)
    assert noise_multiplier_for(3.0, 3, 1e-5) == pytest.approx(2.41, abs=0.01)
    assert noise_multiplier_for(8.0, 3, 1e-5) == pytest.approx(1.04, abs=0.01)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_that_promises_nothing_is_refused(delta: float) -> None:
    with pytest.raises(InvalidRequest, match="delta"):
        epsilon({"a": (1.0, 1)}, delta)


@pytest.mark.parametrize("entry", [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, -1)])
def test_a_run_that_makes_no_sense_is_refused(entry: tuple[float, int]) -> None:
    with pytest.raises(InvalidRequest, match="run a"):
        epsilon({"a": entry}, 1e-5)


def test_importing_the_room_does_not_load_the_accountant_library() -> None:
    program = (
        "import sys, tensafe.privacy.ledger, tensafe.privacy.release;"
        "print([m for m in ('dp_accounting', 'scipy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
