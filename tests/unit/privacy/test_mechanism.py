"""A configuration is frozen into a mechanism, or refused by name with what would be right."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.contracts.training import DpAdamWConfig
from tensafe.privacy.accountant import epsilon
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
    sigma, limit = re.search(r"noise_multiplier >= (\S+) or max_epsilon >= (\S+)", str(caught.value)).groups()  # type: ignore[union-attr]
    resolve(config(max_epsilon=4.0, noise_multiplier=float(sigma)))
    resolve(config(max_epsilon=float(limit)))


@pytest.mark.parametrize(
    "changes", [{}, {"max_steps": 7}, {"max_epsilon": 9.5}, {"max_steps": 7, "max_epsilon": 9}]
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
