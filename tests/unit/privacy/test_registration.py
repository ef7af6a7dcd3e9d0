"""A registered domain binds its runs: its units, its delta, its budget over all runs, and its end."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import BudgetExceeded, Conflict, InvalidRequest
from tensafe.privacy.domain_rules import DOMAIN_CLOSED, DOMAIN_NOT_OPEN
from tensafe.privacy.domains import Domains
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.records import RunRef
from tensafe.privacy.registration import UNIT_NOT_REGISTERED
from tensafe.privacy.replay import replay
from tensafe.storage.ports import Items, Write
from tensafe.vault.vault import Vault
from tests.unit.privacy.support import new_ledger, open_run

BUDGET = 6.6  # two participations at sigma 1 and delta 1e-5 cost 6.57
TERMS = DomainTerms(unit="record", delta=1e-5, max_epsilon=BUDGET)


def register(items: Items, vault: Vault, *ids: int, name: str = "letters", finish: bool = True) -> Domains:
    domains = Domains(items, vault)
    domains.create("acme", name, TERMS)
    entries = b"".join(struct.pack(">q", unit) + bytes(32) for unit in ids)
    domains.add_units("acme", name, 0, entries)
    if finish:
        domains.finish("acme", name)
    return domains


class Meanwhile:
    """Items in front of which something else happens, once, before the next write."""

    def __init__(self, inner: Items) -> None:
        self.inner = inner
        self.first: Callable[[], object] | None = None
        self.get = inner.get
        self.query = inner.query

    def write(self, writes: Sequence[Write]) -> None:
        first, self.first = self.first, None
        if first is not None:
            first()
        self.inner.write(writes)


def test_units_of_the_manifest_are_charged_and_others_are_refused_by_position(
    items: Items, vault: Vault, ledger: Ledger
) -> None:
    register(items, vault, -7, 1, 2, 2**62)
    run = open_run(ledger)
    ledger.check_units(run, [2**62, 1, -7, 2])
    with pytest.raises(InvalidRequest, match=r"2 of 4 data, the first of them data\[1\]") as caught:
        ledger.check_units(run, [1, 3, 2, 8])
    assert (caught.value.field, caught.value.code) == (
        "data[1].loss_fn_inputs.dp_unit_id",
        UNIT_NOT_REGISTERED,
    )
    for beyond in (-(2**63), 0, 2**63 - 1):
        with pytest.raises(InvalidRequest):
            ledger.check_units(run, [beyond])
        with pytest.raises(InvalidRequest) as caught:
            ledger.reserve(run, 0, [1, beyond])
        assert caught.value.code == UNIT_NOT_REGISTERED
    assert ledger.show("acme", "letters").steps == 0
    assert ledger.reserve(run, 0, [1, 2]).units == 2


def test_the_domain_s_budget_binds_over_all_its_runs(items: Items, vault: Vault, ledger: Ledger) -> None:
    register(items, vault, 1, 2)
    one, two = open_run(ledger, "one"), open_run(ledger, "two", max_epsilon=50.0)
    late = open_run(ledger, "late")
    ledger.reserve(one, 0, [1])
    ledger.reserve(two, 0, [2])
    before = ledger.show("acme", "letters")
    for run, unit in ((one, 1), (two, 2)):  # neither a run without a limit nor one with a larger one
        with pytest.raises(BudgetExceeded, match=r"the domain's max_epsilon, over all its runs, is 6\.6"):
            ledger.reserve(run, 1, [unit])
    with pytest.raises(BudgetExceeded):
        ledger.reserve(late, 0, [2])
    with pytest.raises(BudgetExceeded, match="over the domain's max_epsilon"):
        open_run(ledger, "more")
    assert ledger.show("acme", "letters") == before == replay(items, vault, "acme", "letters")
    assert before.epsilon <= BUDGET
    ledger.reserve(one, 1, [])  # a step without units is free


def test_the_smaller_budget_of_run_and_domain_counts(items: Items, vault: Vault, ledger: Ledger) -> None:
    register(items, vault, 1)
    run = open_run(ledger, max_epsilon=5.0)
    ledger.reserve(run, 0, [1])
    with pytest.raises(BudgetExceeded, match="the run's max_epsilon is 5"):
        ledger.reserve(run, 1, [1])


def test_all_runs_have_the_domain_s_delta(items: Items, vault: Vault, ledger: Ledger) -> None:
    register(items, vault, 1)
    with pytest.raises(InvalidRequest, match="registered with delta=1e-05") as caught:
        open_run(ledger, delta=1e-6)
    assert caught.value.field == "optimizer.delta"


def test_nothing_is_charged_before_the_domain_is_finished(items: Items, vault: Vault, ledger: Ledger) -> None:
    early = open_run(ledger, "early")  # while the domain was a name alone
    domains = register(items, vault, 1, finish=False)
    for refused in (
        lambda: open_run(ledger),
        lambda: ledger.check_units(early, [1]),
        lambda: ledger.reserve(early, 0, [1]),
    ):
        with pytest.raises(Conflict) as caught:
            refused()
        assert caught.value.code == DOMAIN_NOT_OPEN
    domains.finish("acme", "letters")
    ledger.reserve(early, 0, [1])
    with pytest.raises(InvalidRequest):
        ledger.check_units(early, [2])


def test_a_closed_domain_charges_nothing_and_what_is_charged_stays(
    items: Items, vault: Vault, ledger: Ledger
) -> None:
    domains = register(items, vault, 1)
    run = open_run(ledger)
    charge = ledger.reserve(run, 3, [1])
    domains.close("acme", "letters")
    for refused in (
        lambda: open_run(ledger, "another"),
        lambda: ledger.check_units(run, [1]),
        lambda: ledger.reserve(run, 4, [1]),
        lambda: ledger.reserve(run, 4, []),
    ):
        with pytest.raises(Conflict) as caught:
            refused()
        assert caught.value.code == DOMAIN_CLOSED
    fresh = new_ledger(items, vault)  # a worker that restores the run finds it and its charge
    assert open_run(fresh) == run
    assert fresh.reserve(run, 3, [1]) == charge
    fresh.commit(run, 3)
    assert fresh.show("acme", "letters").steps == 1


def charge(ledger: Ledger, run: RunRef) -> object:
    return ledger.reserve(run, 0, [1])


def another_run(ledger: Ledger, _: RunRef) -> object:
    return open_run(ledger, "another")


@pytest.mark.parametrize("act", [charge, another_run])
def test_closing_between_the_decision_and_its_transaction_wins(
    items: Items, vault: Vault, act: Callable[[Ledger, RunRef], object]
) -> None:
    domains = register(items, vault, 1)
    meanwhile = Meanwhile(items)
    ledger = new_ledger(meanwhile, vault)
    run = open_run(ledger)
    meanwhile.first = lambda: domains.close("acme", "letters")
    with pytest.raises(Conflict) as caught:
        act(ledger, run)
    assert caught.value.code == DOMAIN_CLOSED
    assert [one.run_id for one in ledger.show("acme", "letters").runs] == ["run-1"]
    assert ledger.show("acme", "letters").steps == 0


def test_registering_between_the_decision_and_its_transaction_wins(items: Items, vault: Vault) -> None:
    meanwhile = Meanwhile(items)
    ledger = new_ledger(meanwhile, vault)
    run = open_run(ledger)
    meanwhile.first = lambda: register(items, vault, 2)
    with pytest.raises(InvalidRequest) as caught:
        ledger.reserve(run, 0, [1])
    assert caught.value.code == UNIT_NOT_REGISTERED


def test_a_charge_between_the_look_at_a_ledger_and_its_registration_is_noticed(
    items: Items, vault: Vault, ledger: Ledger
) -> None:
    run = open_run(ledger)
    meanwhile = Meanwhile(items)
    meanwhile.first = lambda: [ledger.reserve(run, step, [1]) for step in range(3)]  # epsilon 8.4
    meanwhile_domains = Domains(meanwhile, vault)
    with pytest.raises(BudgetExceeded, match=r"have spent epsilon 8\."):
        meanwhile_domains.create("acme", "letters", TERMS)
    assert meanwhile_domains.find("acme", "letters") is None


def test_a_domain_without_a_registration_goes_on_by_its_name(ledger: Ledger) -> None:
    run = open_run(ledger)
    ledger.check_units(run, [12345])
    assert ledger.reserve(run, 0, [12345]).units == 1
