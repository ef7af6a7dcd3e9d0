"""The planner's noise meets its target in every mode, and its proxy is the matrix it stands for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import DpAdamWConfig
from tensafe.privacy import amplified
from tensafe.privacy.amplified import Spent
from tensafe.privacy.bisr import coefficients
from tensafe.privacy.dealt_mechanism import resolve_dealt
from tensafe.privacy.domain_records import Domain
from tensafe.privacy.mechanism import resolve
from tensafe.privacy.planner import Option, Question, default_delta, plan, prefix_error, settings_of

QUESTION = Question(units=2000, batch_size=100, epochs=3, target_epsilon=4.0, delta=1e-5)


@lru_cache
def planned() -> dict[str, Option]:
    return {option.name: option for option in plan(QUESTION)}


@pytest.mark.parametrize(("bandwidth", "steps"), [(1, 1), (1, 9), (4, 3), (4, 40), (16, 16)])
def test_the_proxy_is_that_of_the_matrices(bandwidth: int, steps: int) -> None:
    """Norm of A C^-1 over the root of n, with A the prefix sums."""
    inverse = np.zeros((steps, steps))
    for lag, weight in enumerate(coefficients(bandwidth)[:steps]):
        inverse += np.diag(np.full(steps - lag, weight), -lag)
    exact = float(np.linalg.norm(np.tril(np.ones((steps, steps))) @ inverse)) / steps**0.5
    assert prefix_error(bandwidth, steps) == pytest.approx(exact, rel=1e-12)


def configured(option: Option) -> DpAdamWConfig:
    """A run's optimizer with what the plan says to write into it."""
    rest = {"type": "tensafe_dp_adamw", "clip_norm": 1.0, "domain": "d"}
    return DpAdamWConfig.model_validate({**rest, **settings_of(option, QUESTION)})


@pytest.mark.parametrize(
    "name", ["bounded, independent", "bounded, bisr, reshuffled", "bounded, bisr, fixed order", "attested"]
)
def test_the_service_would_charge_what_was_planned(name: str) -> None:
    option = planned()[name]
    assert option.served
    mechanism = resolve(configured(option))
    assert 3.999 < mechanism.epsilon_bound <= 4.0
    assert mechanism.attested_epsilon(QUESTION.steps) == option.attested_epsilon
    assert (name == "attested") == (option.attested_epsilon is not None)


@pytest.mark.parametrize("adjacency", ["zero_out_one_unit", "add_or_remove_one_unit"])
def test_a_dealt_run_as_planned_fits_a_domain_of_that_budget(adjacency: Any) -> None:
    """By a hair: whoever follows the plan is neither refused nor given more noise than it takes."""
    option = planned()["dealt Poisson"]
    assert option.served
    terms = DomainTerms(unit="record", adjacency=adjacency, delta=QUESTION.delta, max_epsilon=4.0)
    domain = Domain("acme", "d", "open", terms, 0, units=QUESTION.units, manifest_digest="0" * 64)
    mechanism = resolve_dealt(configured(option), domain, Spent())
    assert mechanism.max_steps == QUESTION.steps
    assert 3.99 < amplified.epsilon(mechanism.gaussian, mechanism.max_steps, QUESTION.delta) <= 4.0


def test_what_the_service_would_refuse_is_planned_as_not_served() -> None:
    """More units in a step than one can charge; a delta that loss distributions do not resolve."""
    large = plan(Question(100_000, 30_000, 2, 4.0, 1e-6))
    assert [option.served for option in large] == [False] * 5
    small = {option.name: option.served for option in plan(Question(2000, 100, 1, 4.0, 1e-12))}
    assert small == {
        "bounded, independent": True,
        "bounded, bisr": True,
        "attested": False,
        "dealt Poisson": False,
    }


def test_poisson_meets_the_target_closely_and_is_served() -> None:
    option = planned()["dealt Poisson"]
    assert option.served
    assert option.relative_error == 1.0
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    gaussian = dp_accounting.GaussianDpEvent(option.noise_multiplier)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.05, gaussian), 60)
    assert 3.97 < accountant.get_epsilon(1e-5) <= 4.0


def test_a_fixed_order_needs_less_noise_than_a_reshuffled_one_and_bisr_beats_independent_noise() -> None:
    errors = {name: option.relative_error for name, option in planned().items()}
    assert errors["bounded, bisr, fixed order"] < errors["bounded, bisr, reshuffled"]
    assert errors["bounded, bisr, reshuffled"] < errors["bounded, independent"]
    assert planned()["bounded, bisr, fixed order"].min_separation == 20


def test_the_measured_ratios_of_the_literature_table_hold() -> None:
    """300 steps of 3 epochs at epsilon 4: independent noise 2.9 times the error of Poisson sampling."""
    options = {option.name: option for option in plan(Question(10_000, 100, 3, 4.0, 1e-5))}
    assert options["bounded, independent"].relative_error == pytest.approx(2.9, abs=0.05)
    assert options["bounded, bisr, fixed order"].relative_error < 0.75


def test_runs_too_short_for_a_band_and_of_one_epoch() -> None:
    assert [option.name for option in plan(Question(1, 1, 1, 4.0, 1e-5))] == [
        "bounded, independent",
        "attested",
        "dealt Poisson",
    ]
    assert [option.name for option in plan(Question(40, 10, 1, 4.0, 1e-5))][1] == "bounded, bisr"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"units": 0}, "units"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2001}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 10**6}, "epochs"),
        ({"target_epsilon": 0.0}, "epsilon"),
        ({"target_epsilon": 101.0}, "epsilon"),
        ({"delta": 0.5}, "delta"),
        ({"delta": 0.0}, "delta"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(changes: dict[str, float], field: str) -> None:
    settings = {"units": 2000, "batch_size": 100, "epochs": 3, "target_epsilon": 4.0, "delta": 1e-5}
    with pytest.raises(InvalidRequest) as caught:
        plan(Question(**{**settings, **changes}))  # type: ignore[arg-type]
    assert caught.value.field == field


def test_the_default_delta_is_below_one_over_the_units() -> None:
    assert default_delta(10) == 1e-5
    assert default_delta(10**6) < 1e-6
