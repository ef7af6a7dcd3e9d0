"""Random steps, retries, crashes and restarts against a ledger that a page of Python could keep."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensafe.contracts.errors import BudgetExceeded, Conflict, Unavailable
from tensafe.privacy.records import RunRef
from tensafe.privacy.replay import replay
from tensafe.privacy.statements import Charge
from tests.fakes import MemoryItems
from tests.unit.privacy.support import FlakyItems, exact_epsilon, new_ledger, new_vault, open_run

SIGMAS = {"a": 1.0, "b": 2.0, "c": 0.8}
LIMIT = 9.0
PARTICIPATIONS = 3
UNITS = st.frozensets(st.integers(0, 5), max_size=4)
RUNS = st.sampled_from(sorted(SIGMAS))


class LedgerMachine(RuleBasedStateMachine):
    """The model: the steps of each run as sets of units, and epsilon from the closed form."""

    @initialize()
    def start(self) -> None:
        self.items = FlakyItems(MemoryItems())
        self.vault = new_vault(self.items)
        self.ledger = new_ledger(self.items, self.vault)
        self.refs: dict[str, RunRef] = {}
        self.steps: dict[str, dict[int, frozenset[int]]] = {}
        self.charges: dict[tuple[str, int], Charge] = {}

    def epsilon_with(self, run: str | None = None, units: frozenset[int] = frozenset()) -> float:
        mu_2 = 0.0
        for name, steps in self.steps.items():
            taken = Counter(unit for step in steps.values() for unit in step)
            taken.update(units if name == run else ())
            mu_2 += max(taken.values(), default=0) / SIGMAS[name] ** 2
        return exact_epsilon(mu_2, 1e-5, digits=20)

    def spent(self, run: str, unit: int) -> int:
        return sum(unit in step for step in self.steps[run].values())

    @rule(run=RUNS)
    def open(self, run: str) -> None:
        if run not in self.refs and self.epsilon_with() > 3.0:
            return
        self.refs[run] = open_run(
            self.ledger,
            run,
            noise_multiplier=SIGMAS[run],
            max_participations=PARTICIPATIONS,
            max_epsilon=LIMIT,
        )
        self.steps.setdefault(run, {})

    @precondition(lambda self: self.refs)
    @rule(
        data=st.data(),
        units=UNITS,
        gap=st.integers(1, 3),
        fail=st.sampled_from([None, None, "before", "after"]),
    )
    def step(self, data: st.DataObject, units: frozenset[int], gap: int, fail: str | None) -> None:
        run = data.draw(st.sampled_from(sorted(self.refs)))
        number = max(self.steps[run], default=-1) + gap
        allowed = all(self.spent(run, unit) < PARTICIPATIONS for unit in units)
        total = self.epsilon_with(run, units)
        if not allowed or (units and total > LIMIT):
            with pytest.raises(BudgetExceeded):
                self.ledger.reserve(self.refs[run], number, units)
            return
        self.items.fail = fail
        try:
            charge = self.ledger.reserve(self.refs[run], number, units)
        except Unavailable:
            if fail == "before":
                return
            charge = self.ledger.reserve(self.refs[run], number, units)
        self.steps[run][number] = units
        self.charges[run, number] = charge
        assert charge.epsilon == pytest.approx(total, rel=1e-5, abs=1e-8)

    @precondition(lambda self: self.charges)
    @rule(data=st.data(), units=UNITS)
    def retry(self, data: st.DataObject, units: frozenset[int]) -> None:
        run, number = data.draw(st.sampled_from(sorted(self.charges)))
        same = self.steps[run][number]
        assert self.ledger.reserve(self.refs[run], number, same) == self.charges[run, number]
        if units != same:
            with pytest.raises(Conflict):
                self.ledger.reserve(self.refs[run], number, units)

    @precondition(lambda self: self.charges)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        run, number = data.draw(st.sampled_from(sorted(self.charges)))
        self.ledger.commit(self.refs[run], number)

    @rule()
    def restart(self) -> None:
        self.ledger = new_ledger(self.items, self.vault)

    @invariant()
    def the_ledger_agrees_with_the_model(self) -> None:
        if not getattr(self, "refs", None):
            return
        shown = self.ledger.show("acme", "letters")
        assert shown.epsilon == pytest.approx(self.epsilon_with(), rel=1e-5, abs=1e-8)
        assert shown.epsilon <= LIMIT
        assert shown.steps == sum(map(len, self.steps.values()))
        assert replay(self.items, self.vault, "acme", "letters") == shown


TestLedgerModel = LedgerMachine.TestCase
TestLedgerModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None, derandomize=True)
