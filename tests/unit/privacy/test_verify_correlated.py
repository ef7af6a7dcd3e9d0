"""Exports of runs with correlated noise and with a separation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tensafe.privacy import bisr, rules
from tensafe.privacy.verify_correlated import coefficient_hash, is_sensitivity, sensitivity
from tensafe.privacy.verify_forms import LedgerRefused
from tests.unit.privacy.exports import Exported
from tests.unit.privacy.support import exact_epsilon, open_run

P, N, K, B = 4, 12, 3, 4
S = bisr.sensitivity(P, steps=N, participations=K, min_separation=B)
CORRELATED: dict[str, Any] = {
    "max_steps": N,
    "max_participations": K,
    "min_separation": B,
    "bisr_bandwidth": P,
    "sensitivity": S,
    "noise_multiplier": 2.0,
}


class Correlated(Exported):
    """The three runs, then one with correlated noise (rows 9 to 14), one that keeps units apart (15, 16)."""

    def __init__(self) -> None:
        super().__init__()
        run = open_run(self.ledger, "bisr", **CORRELATED)
        apart = open_run(self.ledger, "apart", min_separation=2)
        for step, units in enumerate(((), {1, 2}, {3}, {4}, {5}, {1, 2})):
            self.ledger.reserve(run, 10 * step, units)
        self.ledger.reserve(apart, 0, {1})
        self.ledger.reserve(apart, 1, {2})
        self.lines = self.export()


EXPORTED = Correlated()


def refusal(lines: list[bytes], exported: Exported = EXPORTED) -> LedgerRefused:
    with pytest.raises(LedgerRefused) as caught:
        exported.verify(lines)
    return caught.value


def test_an_export_with_every_kind_of_run_verifies() -> None:
    report = EXPORTED.verify()
    shown = EXPORTED.ledger.show("acme", "letters")
    assert report.rows == 16
    assert report.epsilon == pytest.approx(shown.epsilon, rel=2e-6)
    alone = {run.run_id: run.epsilon for run in report.runs}
    assert alone["bisr"] == pytest.approx(exact_epsilon((S / 2.0) ** 2, 1e-5), rel=1e-6)
    assert alone["apart"] == pytest.approx(exact_epsilon(1.0, 1e-5), rel=1e-6)
    assert EXPORTED.verify(EXPORTED.forged()) == report


def _mechanism(run: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda head: head["runs"][run]["mechanism"].update(fields)


@pytest.mark.parametrize(
    ("run", "fields", "problem"),
    [
        ("bisr", {"sensitivity": S * 0.99}, "states sensitivity"),
        ("bisr", {"sensitivity": S * 1.01}, "states sensitivity"),
        ("bisr", {"min_separation": 1}, "states sensitivity"),
        ("bisr", {"max_participations": 2}, "states sensitivity"),
        ("bisr", {"min_separation": 2**40}, "do not fit"),
        ("bisr", {"bisr_bandwidth": 3}, "other coefficients"),
        ("bisr", {"coefficient_hash": "0" * 64}, "other coefficients"),
        ("bisr", {"sensitivity": None}, "lacks"),
        ("bisr", {"max_steps": None}, "lacks"),
        ("bisr", {"max_steps": 2_000_000}, "lacks"),
        (
            "bisr",
            {"mode": "bounded_participation_independent_gaussian"},
            "independent noise and coefficients",
        ),
        ("apart", {"mode": "bounded_participation_bisr_gaussian"}, "lacks"),
        ("apart", {"bisr_bandwidth": 300}, "bisr_bandwidth"),
    ],
)
def test_a_mechanism_that_does_not_add_up_is_refused(run: str, fields: dict[str, Any], problem: str) -> None:
    error = refusal(EXPORTED.forged(header=_mechanism(run, **fields)))
    assert error.where == "header"
    assert problem in error.problem


@pytest.mark.parametrize(
    ("row", "fields", "problem"),
    [
        (10, {"index": 0}, "names the noise of 0"),
        (10, {"sensitivity": S / 2}, "sensitivity"),
        (10, {"min_separation": 1}, "min_separation"),
        (10, {"coefficient_hash": "0" * 64}, "coefficient_hash"),
        (10, {"max_steps": 11}, "max_steps"),
        (10, {"accountant": "dp-accounting/gaussian-mechanism/v1"}, "accountant"),
        (10, {"mode": "bounded_participation_independent_gaussian"}, "mode"),
        (15, {"min_separation": 1}, "min_separation"),
        (15, {"accountant": "dp-accounting/gaussian-mechanism/k-b-sensitivity/v1"}, "accountant"),
    ],
)
def test_a_row_of_another_mechanism_is_refused(row: int, fields: dict[str, Any], problem: str) -> None:
    error = refusal(EXPORTED.forged(row=row, change=lambda text: text.update(fields)))
    assert error.where.startswith(f"row {row} (")
    assert problem in error.problem


def test_correlated_noise_that_is_charged_step_by_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: independent accounting of correlated noise, which understates what it costs."""
    monkeypatch.setattr(
        "tensafe.privacy.mechanism.Mechanism.accounted",
        lambda self, participations: (self.noise_multiplier, participations),
    )
    made = Correlated()
    error = refusal(made.lines, made)
    assert error.where.startswith("row 10 (run bisr")
    assert "epsilon" in error.problem


def test_a_service_that_lets_a_unit_back_too_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: the separation is not held."""
    monkeypatch.setattr(rules, "_refuse_early_units", lambda *_: None)
    exported = Exported()
    run = open_run(exported.ledger, "bisr", **CORRELATED)
    for step, unit in enumerate((1, 2, 3, 1)):
        exported.ledger.reserve(run, step, {unit})
    error = refusal(exported.export(), exported)
    assert error.where.startswith("row 12 (run bisr, step 3")
    assert "a unit returns after 3 steps; min_separation=4" in error.problem


@pytest.mark.parametrize(
    ("bandwidth", "steps", "participations", "separation"),
    [
        (1, 10, 5, 1),
        (2, 10, 3, 4),
        (4, 12, 3, 4),
        (4, 100, 10, 10),
        (16, 1000, 7, 100),
        (3, 5, 1, 5),
        (8, 9, 9, 1),
    ],
)
def test_the_sensitivity_is_that_of_the_matrix_itself(
    bandwidth: int, steps: int, participations: int, separation: int
) -> None:
    """The inverse of the noise matrix, column by column; and what the ledger freezes."""
    noise = sum(
        np.diag(np.full(steps - lag, value), -lag)
        for lag, value in enumerate(bisr.coefficients(bandwidth)[:steps])
    )
    strategy = np.linalg.inv(noise)
    wanted = np.linalg.norm(sum(strategy[:, j * separation] for j in range(participations)))
    found = sensitivity(bandwidth, steps, participations, separation)
    assert found == pytest.approx(wanted, rel=1e-10)
    frozen = bisr.sensitivity(
        bandwidth, steps=steps, participations=participations, min_separation=separation
    )
    assert is_sensitivity(frozen, found)
    assert not is_sensitivity(frozen * (1 - 2e-6), found)
    assert coefficient_hash(bandwidth) == bisr.coefficient_hash(bandwidth)
