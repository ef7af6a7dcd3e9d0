"""Random steps, retries, lost answers and restarts against counters that a page of Python could keep."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensafe.contracts.errors import BudgetExceeded, InvalidRequest, Unavailable
from tensafe.privacy.bisr import sensitivity
from tensafe.privacy.replay import replay
from tensafe.privacy.statements import Charge
from tests.fakes import MemoryItems
from tests.unit.privacy.support import FlakyItems, exact_epsilon, new_ledger, new_vault, open_run

STEPS, PARTICIPATIONS, APART, SIGMA = 9, 2, 3, 1.5
WHOLE = sensitivity(3, steps=STEPS, participations=PARTICIPATIONS, min_separation=APART)
RUNS = {"independent": None, "correlated": 3}
REFUSED = (BudgetExceeded, InvalidRequest)
UNITS = st.frozensets(st.integers(0, 4), max_size=3)


class BoundedMachine(RuleBasedStateMachine):
    """The model: each run's steps in order, as sets of units."""

    @initialize()
    def start(self) -> None:
        self.items = FlakyItems(MemoryItems())
        self.vault = new_vault(self.items)
        self.ledger = new_ledger(self.items, self.vault)
        self.steps: dict[str, list[frozenset[int]]] = {run: [] for run in RUNS}
        self.charges: dict[tuple[str, int], Charge] = {}
        self.refs = {
            run: open_run(
                self.ledger,
                run,
                noise_multiplier=SIGMA,
                max_participations=PARTICIPATIONS,
                min_separation=APART,
                max_steps=STEPS,
                bisr_bandwidth=bandwidth,
                sensitivity=None if bandwidth is None else WHOLE,
            )
            for run, bandwidth in RUNS.items()
        }

    def may(self, run: str, unit: int) -> bool:
        taken = [index for index, units in enumerate(self.steps[run]) if unit in units]
        return len(taken) < PARTICIPATIONS and all(len(self.steps[run]) - index >= APART for index in taken)

    def mu_2(self, run: str) -> float:
        steps = self.steps[run]
        largest = max((sum(unit in units for units in steps) for unit in range(5)), default=0)
        squared = largest if RUNS[run] is None else WHOLE**2 * min(largest, 1)
        return squared / SIGMA**2

    @rule(
        run=st.sampled_from(sorted(RUNS)), units=UNITS, fail=st.sampled_from([None, None, "before", "after"])
    )
    def step(self, run: str, units: frozenset[int], fail: str | None) -> None:
        """`step` counts up in tens, so that it is never the index."""
        done = self.steps[run]
        number = 10 * (len(done) + 1)
        if len(done) == STEPS or not all(self.may(run, unit) for unit in units):
            with pytest.raises(REFUSED):
                self.ledger.reserve(self.refs[run], number, units)
            return
        self.items.fail = fail
        try:
            charge = self.ledger.reserve(self.refs[run], number, units)
        except Unavailable:
            if fail == "before":
                return
            charge = self.ledger.reserve(self.refs[run], number, units)
        assert charge.index == len(done)
        done.append(units)
        self.charges[run, number] = charge

    @rule(run=st.sampled_from(sorted(RUNS)), units=UNITS)
    def ask(self, run: str, units: frozenset[int]) -> None:
        """What `check_units` lets pass, `reserve` charges, apart from the number of steps."""
        allowed = all(self.may(run, unit) for unit in units)
        try:
            self.ledger.check_units(self.refs[run], sorted(units))
        except REFUSED:
            assert not allowed
        else:
            assert allowed

    @precondition(lambda self: self.charges)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        run, number = data.draw(st.sampled_from(sorted(self.charges)))
        units = self.steps[run][number // 10 - 1]
        assert self.ledger.reserve(self.refs[run], number, units) == self.charges[run, number]

    @rule()
    def restart(self) -> None:
        self.ledger = new_ledger(self.items, self.vault)

    @invariant()
    def the_ledger_agrees_with_the_model(self) -> None:
        if not hasattr(self, "refs"):
            return
        shown = self.ledger.show("acme", "letters")
        total = exact_epsilon(sum(map(self.mu_2, RUNS)), 1e-5, digits=20)
        assert shown.epsilon == pytest.approx(total, rel=1e-5, abs=1e-8)
        assert shown.steps == sum(map(len, self.steps.values()))
        assert replay(self.items, self.vault, "acme", "letters") == shown


TestBoundedModel = BoundedMachine.TestCase
TestBoundedModel.settings = settings(max_examples=20, stateful_step_count=25, deadline=None, derandomize=True)
