"""The verifier's epsilon against 40-digit arithmetic, and how closely it holds a stated one to it."""

from __future__ import annotations

import numpy as np
import pytest

from tensafe.privacy.accountant import epsilon
from tensafe.privacy.closed_form import epsilon_of, is_epsilon
from tests.unit.privacy.support import exact_epsilon

SETTINGS = [
    (mu_2, delta)
    for mu_2 in (1e-6, 1e-3, 0.04, 0.25, 1.0, 5.0, 40.0, 1e3, 1e6)
    for delta in (1e-12, 1e-6, 1e-5, 0.01)
]


@pytest.mark.parametrize(("mu_2", "delta"), SETTINGS)
def test_epsilon_is_the_exact_one(mu_2: float, delta: float) -> None:
    assert epsilon_of(mu_2, delta) == pytest.approx(exact_epsilon(mu_2, delta), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("mu_2", "delta"), SETTINGS)
def test_what_the_ledger_states_is_accepted_and_little_else(mu_2: float, delta: float) -> None:
    stated = epsilon({"run": (1.0 / mu_2**0.5, 1)}, delta)
    candidates = np.array([stated, stated * 0.9999, stated * 1.0001 + 1e-7])
    wanted = [True, stated < 1e-8, False]  # nothing lies below an epsilon of zero
    assert is_epsilon(candidates, np.full(3, mu_2), delta).tolist() == wanted


def test_nothing_released_is_zero_and_nothing_else() -> None:
    assert epsilon_of(0.0, 1e-5) == 0.0
    assert is_epsilon(np.array([0.0, 1e-12]), np.zeros(2), 1e-5).tolist() == [True, False]


def test_an_infinite_loss_is_no_epsilon() -> None:
    with np.errstate(invalid="ignore"):
        assert not is_epsilon(np.array([100.0]), np.array([np.inf]), 1e-5).any()
