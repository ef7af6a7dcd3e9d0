"""Epsilon of dealt runs is an upper bound of what the dealt mechanism really does, and a close one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import gaussian_mechanism
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tensafe.contracts.errors import InvalidRequest
from tensafe.privacy import amplified
from tensafe.privacy.accountant import epsilon as gaussian_epsilon
from tensafe.privacy.amplified import (
    MAX_STEPS,
    DealtGaussian,
    Spent,
    epsilon,
    max_steps,
    noise_multiplier_for,
    total_epsilon,
)

DELTA = 1e-5
USUAL = DealtGaussian(10_000, 0.0256, 350, 1.0)


@pytest.mark.parametrize(
    ("units", "batch", "epochs", "sigma", "expected"),
    [
        (10_000, 256, 3, 1.0, 1.92),
        (50_000, 1024, 3, 0.7, 4.48),
        (50_000, 1024, 10, 1.0, 2.89),
        (100_000, 512, 3, 0.6, 4.21),
        (1_000, 64, 10, 2.0, 1.80),
    ],
)
def test_epsilons_of_the_planning_table(
    units: int, batch: int, epochs: int, sigma: float, expected: float
) -> None:
    mechanism = DealtGaussian(units, batch / units, 2 * batch, sigma)
    delta = DELTA if units <= 10_000 else units**-1.1
    assert epsilon(mechanism, round(epochs * units / batch), delta) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize(("sigma", "steps"), [(1, 1), (4, 20), (10, 1000), (100, 100), (1000, 2000), (2, 40)])
def test_without_sampling_it_is_the_gaussian_and_a_little_more(
    sigma: float, steps: int, delta: float
) -> None:
    """q = 1 and no cap, against the closed form (Balle and Wang 2018)."""
    exact = gaussian_mechanism.get_epsilon_gaussian(sigma / math.sqrt(steps), delta)
    ours = epsilon(DealtGaussian(100, 1.0, 100, sigma), steps, delta)
    assert exact < ours <= 1.005 * exact + 1e-3


@pytest.mark.parametrize(
    ("q", "sigma", "steps"), [(0.001, 1, 20_000), (1e-4, 1, 100_000), (0.01, 0.8, 895), (0.3, 3, 50)]
)
def test_it_lies_just_above_an_optimistic_bound(q: float, sigma: float, steps: int) -> None:
    """Losses rounded down give less than the truth; rounded up on a much finer grid, hardly more than it."""
    ours = epsilon(DealtGaussian(10**6, q, 10**6, sigma), steps, 1e-6)
    down = pld.from_gaussian_mechanism(
        sigma,
        sampling_prob=q,
        pessimistic_estimate=False,
        value_discretization_interval=1e-4,
        use_connect_dots=False,
    )
    fine = pld.from_gaussian_mechanism(
        sigma, sampling_prob=q, value_discretization_interval=min(1e-4, q / 10)
    )
    assert down.self_compose(steps).get_epsilon_for_delta(1e-6) <= ours
    assert ours <= 1.01 * fine.self_compose(steps).get_epsilon_for_delta(1e-6)


def _batches(units: int, q: float, cap: int, present: bool) -> dict[tuple[int, bool], float]:
    """(how many other units, whether unit 0) -> probability, by enumerating the law of a deal."""
    law: dict[tuple[int, bool], float] = {}
    for drawn in itertools.product((False, True), repeat=units):
        chance = math.prod(q if one else 1 - q for one in drawn)
        who = [unit for unit, one in enumerate(drawn) if one and (present or unit)]
        batches = [who] if len(who) <= cap else list(itertools.combinations(who, cap))
        for batch in batches:
            key = (sum(unit > 0 for unit in batch), 0 in batch)
            law[key] = law.get(key, 0.0) + chance / len(batches)
    return law


def _density(law: dict[tuple[int, bool], float], mine: float, theirs: float, sigma: float) -> np.ndarray:
    sums = [(chance, others * theirs + (mine if here else 0.0)) for (others, here), chance in law.items()]
    return sum(
        chance * np.exp(-((GRID - centre) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
        for chance, centre in sums
    )


GRID = np.linspace(-14.0, 14.0, 56_001)


def _true_delta(units: int, q: float, cap: int, sigma: float, adjacency: str, eps: float) -> float:
    """Largest hockey-stick divergence of one step, both ways, over placements of the units at -1, 0, 1."""
    worst = 0.0
    with_unit, without = _batches(units, q, cap, True), _batches(units, q, cap, False)
    for theirs in (-1.0, 0.0, 1.0):
        here = _density(with_unit, 1.0, theirs, sigma)
        gone = _density(with_unit if adjacency == "zero" else without, 0.0, theirs, sigma)
        for p, other in ((here, gone), (gone, here)):
            worst = max(worst, float(np.maximum(p - math.exp(eps) * other, 0).sum() * (GRID[1] - GRID[0])))
    return worst


CAPPED = [(3, 0.5, 1, 1.0), (4, 0.9, 2, 0.7), (5, 0.3, 2, 1.5), (2, 1.0, 1, 1.0), (4, 0.2, 1, 0.5)]


def _claimed_delta(mechanism: DealtGaussian, eps: float) -> float:
    return float(amplified._one_step(mechanism, amplified.GRID).get_delta_for_epsilon(eps))


@pytest.mark.parametrize("adjacency", ["zero", "add_or_remove"])
@pytest.mark.parametrize(("units", "q", "cap", "sigma"), CAPPED)
def test_the_claim_covers_the_law_of_a_capped_deal(
    units: int, q: float, cap: int, sigma: float, adjacency: str
) -> None:
    """Small enough to enumerate: what dealing.py does, sum by sum, for both neighbouring relations."""
    mechanism = DealtGaussian(units, q, cap, sigma)
    for eps in (0.0, 0.1, 0.5, 1.0, 2.0):
        true = _true_delta(units, q, cap, sigma, adjacency, eps)
        assert true <= _claimed_delta(mechanism, eps) + 1e-12


def test_a_cap_is_not_free() -> None:
    """Accounting for a capped deal as if it were never cut would claim less than is true."""
    units, q, cap, sigma = 4, 0.9, 2, 0.7
    uncut = pld.from_gaussian_mechanism(sigma, sampling_prob=q, value_discretization_interval=1e-4)
    true = _true_delta(units, q, cap, sigma, "add_or_remove", 1.0)
    assert true > 1.01 * uncut.get_delta_for_epsilon(1.0)


@given(st.integers(1, 5000), st.floats(1e-6, 1.0), st.integers(1, 6000))
def test_the_bound_on_being_cut_is_one(others: int, q: float, cap: int) -> None:
    assert amplified._cut_bound(others, q, cap) >= stats.binom.sf(cap - 1, others, q) * (1 - 1e-9)


def test_a_cap_that_is_hardly_ever_reached_costs_nothing() -> None:
    uncut = epsilon(DealtGaussian(10_000, 0.0256, 10_000, 1.0), 117, DELTA)
    assert uncut <= epsilon(USUAL, 117, DELTA) <= uncut + 1e-3
    assert epsilon(DealtGaussian(10_000, 0.0256, 256, 1.0), 117, DELTA) > 2 * uncut


def _changed(mechanism: DealtGaussian, *, q: float = 1.0, sigma: float = 1.0) -> DealtGaussian:
    return replace(
        mechanism,
        sampling_probability=q * mechanism.sampling_probability,
        noise_multiplier=sigma * mechanism.noise_multiplier,
    )


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([200, 5000]),
    st.floats(0.005, 0.5),
    st.floats(0.6, 5),
    st.integers(1, 200),
    st.sampled_from([0.7, 2.0, 100.0]),
)
def test_more_noise_rarer_draws_and_fewer_steps_cost_less(
    units: int, q: float, sigma: float, steps: int, room: float
) -> None:
    mechanism = DealtGaussian(units, q, max(1, int(room * q * units)), sigma)
    base = epsilon(mechanism, steps, DELTA)
    assert epsilon(mechanism, steps + 1, DELTA) >= base
    assert epsilon(mechanism, steps, 10 * DELTA) <= base
    if math.isfinite(base):
        for change in (_changed(mechanism, q=0.8), _changed(mechanism, sigma=1.1)):
            assert epsilon(change, steps, DELTA) <= base * 1.001 + 1e-6


@pytest.mark.parametrize(
    ("mechanism", "others"),
    [
        (USUAL, Spent()),
        (USUAL, Spent(((USUAL, 20),), 0.02)),
        (DealtGaussian(10_000, 0.01, 10_000, 0.8), Spent(((USUAL, 20),))),
    ],
)
def test_max_steps_is_the_last_that_fits(mechanism: DealtGaussian, others: Spent) -> None:
    most = max_steps(2.5, mechanism, DELTA, others)
    assert most > 1
    assert total_epsilon(others.plus(mechanism, most), DELTA) <= 2.5
    assert total_epsilon(others.plus(mechanism, most + 1), DELTA) > 2.5 - 1e-9


def test_max_steps_at_its_ends() -> None:
    assert max_steps(3.0, DealtGaussian(10_000, 0.01, 10_000, 0.8), DELTA) == 895
    assert max_steps(0.01, USUAL, DELTA) == 0
    assert max_steps(2.0, USUAL, DELTA, Spent(gaussian_mu_squared=4.0)) == 0
    assert max_steps(3.0, DealtGaussian(10_000, 1e-5, 50, 50.0), DELTA) == MAX_STEPS


def test_admission_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = max_steps(2.0, USUAL, DELTA)
    monkeypatch.setattr(amplified, "_total", None)
    assert max_steps(2.0, USUAL, DELTA) == first


@pytest.mark.parametrize(
    ("units", "batch", "cap", "steps", "expected"),
    [(10_000, 256, 10_000, 117, 1.38), (500, 32, 38, 40, None)],
)
def test_sigma_for_a_target_just_reaches_it(
    units: int, batch: int, cap: int, steps: int, expected: float | None
) -> None:
    """The second has a cap that is often reached."""
    q = batch / units
    sigma = noise_multiplier_for(1.0, DELTA, units=units, sampling_probability=q, batch_cap=cap, steps=steps)
    assert expected is None or sigma == pytest.approx(expected, abs=0.01)
    assert epsilon(DealtGaussian(units, q, cap, sigma), steps, DELTA) <= 1.0
    assert epsilon(DealtGaussian(units, q, cap, sigma * 0.999), steps, DELTA) > 1.0


def test_no_sigma_is_enough_for_an_impossible_target() -> None:
    with pytest.raises(InvalidRequest, match="no noise_multiplier") as caught:
        noise_multiplier_for(1e-9, DELTA, units=10, sampling_probability=1.0, batch_cap=10, steps=MAX_STEPS)
    assert caught.value.field == "target_epsilon"


def test_runs_of_several_mechanisms_compose() -> None:
    gentle = DealtGaussian(10_000, 0.01, 200, 0.9)
    mixed = total_epsilon(Spent(((USUAL, 100), (gentle, 200)), 0.1), DELTA)
    parts = [
        epsilon(USUAL, 100, DELTA),
        epsilon(gentle, 200, DELTA),
        gaussian_epsilon({"": (0.1**-0.5, 1)}, DELTA),
    ]
    assert max(parts) < mixed < sum(parts)
    assert mixed == total_epsilon(Spent(((gentle, 200), (USUAL, 100)), 0.1), DELTA)
    # As if it were one mechanism where it is.
    split = Spent().plus(USUAL, 40).plus(gentle, 3).plus(USUAL, 77)
    assert dict(split.dealt) == {USUAL: 117, gentle: 3}


def test_gaussians_alone_and_gaussians_as_deals_agree_with_the_exact_accountant() -> None:
    assert total_epsilon(Spent(gaussian_mu_squared=0.25), DELTA) == gaussian_epsilon({"": (2.0, 1)}, DELTA)
    assert total_epsilon(Spent(), DELTA) == 0.0
    half = Spent(((DealtGaussian(50, 1.0, 50, 4.0), 2),), 0.125)  # mu^2 = 2/16 + 1/8
    exact = gaussian_epsilon({"": (2.0, 1)}, DELTA)
    assert exact <= total_epsilon(half, DELTA) <= 1.001 * exact


def test_no_step_is_so_private_that_its_rounding_is_forgotten() -> None:
    assert epsilon(DealtGaussian(10_000, 0.01, 10_000, 100.0), MAX_STEPS, 1e-9) == math.inf
    assert math.isfinite(epsilon(DealtGaussian(10_000, 0.01, 10_000, 100.0), MAX_STEPS, 1e-8))


def test_what_protects_nobody_is_infinite_and_quick_to_tell() -> None:
    assert epsilon(DealtGaussian(10_000, 0.5, 10_000, 0.1), MAX_STEPS, DELTA) == math.inf
    assert total_epsilon(Spent(((USUAL, 1),), 1e6), DELTA) == math.inf


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((0, 0.5, 1, 1.0), "batch_cap"),
        ((5, 0.5, 0, 1.0), "batch_cap"),
        ((5, 0.0, 1, 1.0), "sampling_probability"),
        ((5, 1.1, 1, 1.0), "sampling_probability"),
        ((5, math.nan, 1, 1.0), "sampling_probability"),
        ((5, 0.5, 1, 0.01), "noise_multiplier"),
        ((5, 0.5, 1, math.inf), "noise_multiplier"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused_by_name(
    arguments: tuple[int, float, int, float], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        DealtGaussian(*arguments)
    assert caught.value.field == field


def test_delta_steps_and_repeated_mechanisms_are_checked() -> None:
    for delta in (0.0, 1e-12, 1.0, math.nan):
        with pytest.raises(InvalidRequest) as caught:
            epsilon(USUAL, 1, delta)
        assert caught.value.field == "delta"
    for steps in (-1, MAX_STEPS + 1):
        with pytest.raises(InvalidRequest):
            epsilon(USUAL, steps, DELTA)
    with pytest.raises(InvalidRequest, match="twice"):
        Spent(((USUAL, 1), (USUAL, 1)))
