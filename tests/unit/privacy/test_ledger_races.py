"""Several trainers charge one domain at once: nothing is lost, nothing is overspent."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tensafe.contracts.errors import BudgetExceeded
from tensafe.privacy.accountant import max_participations_within
from tensafe.privacy.replay import replay
from tensafe.privacy.statements import Charge
from tensafe.storage.ports import Items
from tensafe.vault.vault import Vault
from tests.unit.privacy.support import new_ledger, open_run

WORKERS = 6


def race(acts: list[Callable[[], object]]) -> list[object]:
    """Start all at once; each one's result or the budget's refusal."""
    barrier = Barrier(len(acts))

    def run(act: Callable[[], object]) -> object:
        barrier.wait(timeout=10)
        try:
            return act()
        except BudgetExceeded as refused:
            return refused

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


@pytest.mark.parametrize("shared", [True, False], ids=["one-ledger", "ledger-each"])
def test_the_last_of_a_budget_is_spent_once(items: Items, vault: Vault, shared: bool) -> None:
    """Room for exactly one of them (sigma 1: 4.377 once, 6.573 twice)."""
    first = new_ledger(items, vault)
    ledgers = [first if shared else new_ledger(items, vault) for _ in range(WORKERS)]
    runs = [open_run(first, f"run-{n}", max_epsilon=5.0) for n in range(WORKERS)]
    outcomes = race(
        [
            lambda ledger=ledger, run=run: ledger.reserve(run, 0, {1})
            for ledger, run in zip(ledgers, runs, strict=True)
        ]
    )
    charged = [outcome for outcome in outcomes if isinstance(outcome, Charge)]
    assert len(charged) == 1
    assert sum(isinstance(outcome, BudgetExceeded) for outcome in outcomes) == WORKERS - 1
    assert first.show("acme", "letters").epsilon == charged[0].epsilon <= 5.0
    assert replay(items, vault, "acme", "letters") == first.show("acme", "letters")


def test_many_runs_spend_a_budget_to_its_end_and_not_beyond(items: Items, vault: Vault) -> None:
    room = max_participations_within(3.0, 5.0, 1e-5)
    assert room == 12

    def spend(number: int) -> int:
        ledger = new_ledger(items, vault)
        run = open_run(ledger, f"run-{number}", noise_multiplier=5.0, max_participations=100, max_epsilon=3.0)
        for step in range(room + 1):
            try:
                ledger.reserve(run, step, {1})
            except BudgetExceeded:
                return step
        return room + 1

    open_run(new_ledger(items, vault), "first", noise_multiplier=5.0)
    steps = race([lambda number=number: spend(number) for number in range(WORKERS)])
    assert sum(step for step in steps if isinstance(step, int)) == room
    statement = new_ledger(items, vault).show("acme", "letters")
    assert 2.8 < statement.epsilon <= 3.0
    assert replay(items, vault, "acme", "letters") == statement


def test_two_holders_of_one_step_get_one_charge(items: Items, vault: Vault) -> None:
    run = open_run(new_ledger(items, vault))
    for step in range(5):
        charges = race(
            [lambda step=step: new_ledger(items, vault).reserve(run, step, {step}) for _ in range(WORKERS)]
        )
        assert len(set(charges)) == 1
    assert new_ledger(items, vault).show("acme", "letters").steps == 5


def test_opening_races_leave_one_domain(items: Items, vault: Vault) -> None:
    acts = [lambda n=n: open_run(new_ledger(items, vault), f"run-{n % 3}") for n in range(WORKERS)]
    assert len(set(race(acts))) == 3
    assert len(new_ledger(items, vault).show("acme", "letters").runs) == 3
