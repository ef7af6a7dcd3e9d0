"""A configuration is frozen into a mechanism, or refused by name with what would be right."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.contracts.training import DpAdamWConfig
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.bisr import sensitivity
from tensafe.privacy.mechanism import Mechanism, resolve


def config(**changes: Any) -> DpAdamWConfig:
    fields: dict[str, Any] = {
        "type": "tensafe_dp_adamw",
        "clip_norm": 0.5,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "batch_size": 8,
        "domain": "letters",
    }
    fields |= changes
    return DpAdamWConfig(**fields)


def test_a_given_noise_multiplier_is_kept() -> None:
    mechanism = resolve(config(max_participations=3))
    assert (mechanism.noise_multiplier, mechanism.max_participations) == (1.0, 3)
    assert mechanism.standard_deviation == 0.5
    assert mechanism.epsilon_bound == epsilon({"a": (1.0, 3)}, 1e-5)


def test_a_target_is_met_after_the_participations_that_can_happen() -> None:
    few = resolve(config(noise_multiplier=None, target_epsilon=8.0, max_steps=2, max_participations=5))
    assert few.max_participations == 2
    assert 7.999 < few.epsilon_bound <= 8.0
    many = resolve(config(noise_multiplier=None, target_epsilon=8.0, max_steps=50, max_participations=5))
    assert many.max_participations == 5
    assert 7.999 < many.epsilon_bound <= 8.0
    assert many.noise_multiplier > few.noise_multiplier


def test_weak_privacy_is_refused_and_the_advice_works() -> None:
    weak = config(noise_multiplier=0.12, max_participations=4)
    with pytest.raises(InvalidRequest, match="protects nobody") as caught:
        resolve(weak)
    assert caught.value.field == "optimizer.noise_multiplier"
    sigma, fewer = re.search(
        r"noise_multiplier >= (\S+), max_participations <= (\d+)", str(caught.value)
    ).groups()  # type: ignore[union-attr]
    assert resolve(config(noise_multiplier=float(sigma), max_participations=4)).epsilon_bound <= 100
    assert resolve(config(noise_multiplier=0.12, max_participations=int(fewer))).epsilon_bound <= 100
    accepted = resolve(config(noise_multiplier=0.12, max_participations=4, allow_weak_privacy=True))
    assert accepted.epsilon_bound > 100


def test_a_hundred_is_the_border() -> None:
    from tensafe.privacy.accountant import noise_multiplier_for

    border = noise_multiplier_for(100.0, 1, 1e-5)
    resolve(config(noise_multiplier=border))
    with pytest.raises(InvalidRequest, match="allow_weak_privacy=true"):
        resolve(config(noise_multiplier=border * 0.999))


def test_a_target_beyond_a_hundred_is_weak_too() -> None:
    with pytest.raises(InvalidRequest, match="protects nobody"):
        resolve(config(noise_multiplier=None, target_epsilon=150.0, max_steps=1))


def test_a_budget_without_room_for_one_step_is_refused_and_the_advice_works() -> None:
    with pytest.raises(InvalidRequest, match="admits no step") as caught:
        resolve(config(max_epsilon=4.0))
    assert caught.value.field == "optimizer.max_epsilon"
    sigma, limit = re.search(
        r"noise_multiplier >= (\S+) or max_epsilon >= ([\d.]+)\. ", str(caught.value)
    ).groups()  # type: ignore[union-attr]
    resolve(config(max_epsilon=4.0, noise_multiplier=float(sigma)))
    resolve(config(max_epsilon=float(limit)))


BISR: dict[str, Any] = {"noise": "bisr", "bisr_bandwidth": 3, "max_steps": 10, "min_separation": 4}


def test_a_separation_bounds_the_participations_that_can_happen() -> None:
    assert resolve(config(max_participations=9, max_steps=10, min_separation=4)).max_participations == 3
    assert resolve(config(max_participations=2, max_steps=10, min_separation=4)).max_participations == 2
    assert (
        resolve(config(max_participations=9, min_separation=4, noise_multiplier=3.0)).max_participations == 9
    )


def test_a_target_of_correlated_noise_is_met_by_the_whole_run() -> None:
    mechanism = resolve(config(**BISR, noise_multiplier=None, target_epsilon=3.0, max_participations=9))
    exact = sensitivity(3, steps=10, participations=3, min_separation=4)
    assert (mechanism.sensitivity, mechanism.max_participations) == (exact, 3)
    assert 2.999 < mechanism.epsilon_bound <= 3.0
    assert mechanism.epsilon_bound == epsilon({"run": (mechanism.noise_multiplier / exact, 1)}, 1e-5)


def test_weak_correlated_noise_is_refused_and_the_advice_works() -> None:
    with pytest.raises(InvalidRequest, match="protects nobody") as caught:
        resolve(config(**BISR, noise_multiplier=0.1, max_participations=3))
    (sigma,) = re.search(r"noise_multiplier >= ([0-9.]+), or allow", str(caught.value)).groups()  # type: ignore[union-attr]
    assert resolve(config(**BISR, noise_multiplier=float(sigma), max_participations=3)).epsilon_bound <= 100


def test_a_budget_without_room_for_a_correlated_run_is_refused_and_the_advice_works() -> None:
    with pytest.raises(InvalidRequest, match="the whole run, charged before its first step") as caught:
        resolve(config(**BISR, max_epsilon=4.0))
    sigma, limit = re.search(
        r"noise_multiplier >= (\S+) or max_epsilon >= ([\d.]+)\. ", str(caught.value)
    ).groups()  # type: ignore[union-attr]
    resolve(config(**BISR, max_epsilon=4.0, noise_multiplier=float(sigma)))
    resolve(config(**BISR, max_epsilon=float(limit)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mode": "dealt"}, "mode='dealt' needs max_steps, or max_epsilon"),
        ({"mode": "dealt", "max_steps": 9, "max_participations": 2}, "max_participations does not go with"),
        ({"mode": "dealt", "max_steps": 9, "min_separation": 2}, "min_separation does not go with"),
        ({"mode": "dealt", "noise": "bisr", "bisr_bandwidth": 2, "max_steps": 9}, "noise does not go with"),
        ({"sampling_probability": 0.1}, "sampling_probability does not go with mode='bounded'"),
        ({"batch_cap": 9}, "batch_cap does not go with mode='bounded'"),
        ({"reveal_non_dp": True}, "reveal_non_dp does not go with mode='bounded'"),
        ({"mode": "attested"}, "mode='attested' needs the sampling_probability that is attested"),
        ({"mode": "attested", "sampling_probability": 0.1, "batch_cap": 3}, "batch_cap does not go with"),
        ({"mode": "attested", "sampling_probability": 0.1, **BISR}, "noise does not go with"),
        ({"mode": "poisson"}, "Input should be 'bounded', 'dealt' or 'attested'"),
        ({"noise": "bisr", "max_steps": 10}, "needs bisr_bandwidth and max_steps"),
        ({"noise": "bisr", "bisr_bandwidth": 4}, "needs bisr_bandwidth and max_steps"),
        ({"noise": "bisr", "bisr_bandwidth": 11, "max_steps": 10}, "needs max_steps from bisr_bandwidth"),
        ({"noise": "bisr", "bisr_bandwidth": 4, "max_steps": 1_000_001}, "to 1000000"),
        ({"noise": "bisr", "bisr_bandwidth": 1, "max_steps": 10}, "greater than or equal to 2"),
        ({"bisr_bandwidth": 4}, "goes with noise='bisr'"),
        ({"min_separation": 0}, "greater than or equal to 1"),
        ({"noise": "tree"}, "'independent' or 'bisr'"),
    ],
)
def test_a_configuration_that_is_not_served_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**changes)
    assert says in str(caught.value)
    assert resolve(config(mode="bounded")) == resolve(config())


@pytest.mark.parametrize(
    "change",
    [
        {"coefficient_hash": "0" * 64},
        {"bisr_bandwidth": 4},
        {"bisr_bandwidth": None, "coefficient_hash": None},
        {"bisr_bandwidth": 1000},
        {"sensitivity": None},
        {"mode": "bounded_participation_independent_gaussian"},
        {"version": 1},
        {"version": 3},
    ],
)
def test_a_stored_correlation_that_does_not_add_up_is_refused(change: dict[str, Any]) -> None:
    body = resolve(config(**BISR)).to_body()
    assert body["version"] == 2
    with pytest.raises(IntegrityError):
        Mechanism.from_body(body | change)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"min_separation": 3},
        BISR,
        {"max_steps": 7},
        {"max_epsilon": 9.5},
        {"max_steps": 7, "max_epsilon": 9},
    ],
)
def test_storage_round_trip(changes: dict[str, Any]) -> None:
    mechanism = resolve(config(**changes))
    assert Mechanism.from_body(json.loads(json.dumps(mechanism.to_body()))) == mechanism


def test_the_stored_form_of_version_1_never_changes() -> None:
    stored = {
        "version": 1,
        "mode": "bounded_participation_independent_gaussian",
        "adjacency": "add_or_remove_one_unit",
        "clip_norm": 0.5,
        "noise_multiplier": 1.0,
        "batch_size": 8,
        "max_participations": 1,
        "delta": 1e-5,
        "domain": "letters",
        "max_steps": None,
        "max_epsilon": None,
    }
    assert resolve(config()).to_body() == stored


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"mode": "dealt_poisson"}, {"adjacency": "replace_one"}, {"extra": 1}, {"delta": None}],
)
def test_a_stored_form_of_another_meaning_is_refused(change: dict[str, Any]) -> None:
    body = resolve(config()).to_body() | change
    with pytest.raises(IntegrityError):
        Mechanism.from_body(body)
    missing = resolve(config()).to_body()
    del missing["batch_size"]
    with pytest.raises(IntegrityError, match="damaged"):
        Mechanism.from_body(missing)
