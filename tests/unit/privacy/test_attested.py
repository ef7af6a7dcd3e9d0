"""Attested sampling: both epsilons are told, and every budget binds on the one that needs no belief."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tensafe.contracts.errors import BudgetExceeded, IntegrityError, InvalidRequest
from tensafe.privacy import amplified
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.mechanism import Mechanism, resolve
from tensafe.privacy.replay import replay
from tensafe.privacy.verify_forms import LedgerRefused
from tests.support.training_log import private
from tests.unit.privacy.exports import Exported
from tests.unit.privacy.support import open_run

Q = 0.02
STEPS = 5


class Attested(Exported):
    """The export of `Exported` with five steps of an attested run after it."""

    def __init__(self) -> None:
        super().__init__()
        run = open_run(
            self.ledger, "four", noise_multiplier=2.0, attested_probability=Q, max_participations=2
        )
        self.charges = [self.ledger.reserve(run, step, {10 + step % 3}) for step in range(STEPS)]
        self.lines = self.export()


@pytest.fixture(scope="module")
def attested() -> Attested:
    return Attested()


def poisson(steps: int) -> float:
    return amplified.epsilon(amplified.DealtGaussian(10_000, Q, 10_000, 2.0), steps, 1e-5)


def test_both_epsilons_are_told_and_the_budget_counts_the_certified_one(attested: Attested) -> None:
    told = [charge.attested_epsilon for charge in attested.charges]
    assert told == [poisson(steps) for steps in range(1, STEPS + 1)]
    certified = [charge.run_epsilon for charge in attested.charges]
    assert certified == [epsilon({"": (2.0, 1 + step // 3)}, 1e-5) for step in range(STEPS)]
    assert told[-1] is not None
    assert told[-1] < certified[-1] / 10


def test_a_client_that_does_not_sample_as_it_says_meets_its_budget_all_the_same() -> None:
    """One unit in every step: the attested number stays small, and the second step is refused."""
    export = Exported()
    run = open_run(
        export.ledger, "four", "corp", noise_multiplier=1.0, attested_probability=Q, max_epsilon=5.0
    )
    first = export.ledger.reserve(run, 0, {1})
    assert first.attested_epsilon is not None
    assert first.attested_epsilon < 1 < first.epsilon < 5
    with pytest.raises(BudgetExceeded):
        export.ledger.reserve(run, 1, {1})


def test_a_third_party_computes_both_again(attested: Attested) -> None:
    report = attested.verify()
    (run,) = [run for run in report.runs if run.run_id == "four"]
    assert run.attested_epsilon == pytest.approx(poisson(STEPS), rel=2e-3)
    assert run.epsilon == pytest.approx(attested.charges[-1].run_epsilon, rel=1e-5)
    assert {one.attested_epsilon for one in report.runs} == {None, run.attested_epsilon}
    shown = replay(attested.items, attested.vault, "acme", "letters")
    assert shown == attested.ledger.show("acme", "letters")
    (stated,) = [run for run in shown.runs if run.run_id == "four"]
    assert (stated.attested_probability, stated.attested_epsilon) == (Q, poisson(STEPS))


@pytest.mark.parametrize(
    ("row", "changes", "says"),
    [
        (9, {"attested_epsilon": 1e-4}, "states attested_epsilon 0.0001"),
        (13, {"attested_epsilon": 0.001}, "below that of the step before"),
        (13, {"attested_epsilon": None}, "states attested_epsilon None"),
        (11, {"attested_epsilon": 1.0}, "below that of the step before"),
        (10, {"attested_probability": 0.001}, "attested_probability is not that"),
        (10, {"version": 2}, "attested_"),
    ],
)
def test_a_signed_forgery_is_caught_by_its_row(
    attested: Attested, row: int, changes: Mapping[str, Any], says: str
) -> None:
    with pytest.raises(LedgerRefused, match=says) as caught:
        attested.verify(attested.forged(row=row, change=lambda fields: fields.update(changes)))
    found = int(caught.value.where.split()[1])
    assert row <= found <= row + 1


def test_a_configuration_becomes_the_mechanism_and_what_cannot_be_computed_is_refused() -> None:
    config = private(mode="attested", sampling_probability=Q, max_participations=3)
    mechanism = resolve(config)
    assert (mechanism.version, mechanism.attested_probability) == (4, Q)
    assert Mechanism.from_body(mechanism.to_body()) == mechanism
    with pytest.raises(IntegrityError):
        Mechanism.from_body({**mechanism.to_body(), "version": 2})
    with pytest.raises(InvalidRequest, match="delta must be at least 1e-09"):
        resolve(private(mode="attested", sampling_probability=Q, delta=1e-12))


def test_an_epsilon_that_nobody_can_use_is_told_as_none() -> None:
    mechanism = resolve(
        private(mode="attested", sampling_probability=1.0, noise_multiplier=0.1, allow_weak_privacy=True)
    )
    assert mechanism.attested_epsilon(100) is None
