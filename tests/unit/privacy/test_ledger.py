"""The ledger charges once, before noise, over all runs of a domain, and never refunds."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

from tensafe.contracts.errors import (
    BudgetExceeded,
    Conflict,
    Gone,
    IntegrityError,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.noise import noise_key_id
from tensafe.privacy.records import RunRef
from tensafe.privacy.replay import replay
from tensafe.storage.ports import Check, ConditionFailed, Delete, Items, Key, Put
from tensafe.vault.vault import Vault
from tests.unit.privacy.support import MECHANISM, FlakyItems, new_ledger, open_run, secret_of


def test_one_participation_costs_4_377(ledger: Ledger) -> None:
    run = open_run(ledger)
    charge = ledger.reserve(run, 0, {1, 2, 3})
    assert charge.epsilon == pytest.approx(4.377, abs=1e-3)
    assert (charge.run_epsilon, charge.delta) == (charge.epsilon, 1e-5)
    assert (charge.participations, charge.units, charge.step) == (1, 3, 0)
    assert (charge.standard_deviation, charge.batch_size) == (1.0, 8)


def test_other_units_in_another_step_cost_nothing_more(ledger: Ledger) -> None:
    run = open_run(ledger)
    first = ledger.reserve(run, 0, {1, 2})
    assert ledger.reserve(run, 1, {3, 4}).epsilon == first.epsilon
    again = ledger.reserve(run, 2, {5, 1})
    assert again.participations == 2
    assert again.epsilon == epsilon({"a": (1.0, 2)}, 1e-5) > first.epsilon


def test_reruns_of_a_domain_compose(ledger: Ledger) -> None:
    for number in range(5):
        charge = ledger.reserve(open_run(ledger, f"run-{number}"), 0, {1})
        assert charge.epsilon == pytest.approx(epsilon({"a": (1.0, number + 1)}, 1e-5))
        assert charge.run_epsilon == pytest.approx(4.377, abs=1e-3)
    assert ledger.show("acme", "letters").epsilon == pytest.approx(11.480, abs=1e-3)


def test_domains_and_tenants_do_not_compose(ledger: Ledger) -> None:
    one = ledger.reserve(open_run(ledger, "a"), 0, {1})
    other = ledger.reserve(open_run(ledger, "b", domain="mails"), 0, {1})
    foreign = ledger.reserve(open_run(ledger, "c", tenant="rival"), 0, {1})
    assert one.epsilon == other.epsilon == foreign.epsilon


def test_a_retry_returns_the_charge_without_charging(ledger: Ledger, items: Items, vault: Vault) -> None:
    run = open_run(ledger)
    charge = ledger.reserve(run, 4, {1, 2}, binding="sum-1")
    before = ledger.show("acme", "letters")
    assert ledger.reserve(run, 4, [2, 1], binding="sum-1") == charge
    assert new_ledger(items, vault).reserve(run, 4, {1, 2}, binding="sum-1") == charge
    ledger.reserve(run, 5, {3})
    assert ledger.reserve(run, 4, {1, 2}, binding="sum-1") == charge
    assert ledger.show("acme", "letters").epsilon == before.epsilon
    assert ledger.show("acme", "letters").steps == 2


@pytest.mark.parametrize(("unit_ids", "binding"), [({1}, "s"), ({1, 2, 3}, "s"), (set(), "s"), ({1, 2}, "t")])
def test_a_charged_step_is_not_reused_for_another_sum(
    ledger: Ledger, unit_ids: set[int], binding: str
) -> None:
    """Its noise would be the same, and the difference of the two releases would show the gradients."""
    run = open_run(ledger)
    ledger.reserve(run, 0, {1, 2}, binding="s")
    with pytest.raises(Conflict, match="other units or another sum"):
        ledger.reserve(run, 0, unit_ids, binding=binding)


def test_steps_only_go_forward(ledger: Ledger) -> None:
    run = open_run(ledger)
    ledger.reserve(run, 10, {1})
    with pytest.raises(Conflict, match="only go forward"):
        ledger.reserve(run, 9, {2})
    assert ledger.reserve(run, 1000, {2}).step == 1000


def test_an_empty_step_costs_nothing_and_takes_its_step(ledger: Ledger) -> None:
    run = open_run(ledger, max_epsilon=5.0)
    assert ledger.reserve(run, 0, ()).epsilon == 0.0
    charge = ledger.reserve(run, 1, {1})
    assert ledger.reserve(run, 2, ()).epsilon == charge.epsilon
    with pytest.raises(Conflict):
        ledger.reserve(run, 0, {1})


def test_a_unit_beyond_its_participations_is_refused(ledger: Ledger) -> None:
    run = open_run(ledger, max_participations=2)
    for step in range(2):
        ledger.check_units(run, [7, 8 + step])
        ledger.reserve(run, step, {7, 8 + step})
    with pytest.raises(BudgetExceeded, match=r"2 of 4 data, the first at position 1, .*=2 steps") as caught:
        ledger.check_units(run, [100, 7, 8, 7])
    assert caught.value.field == "data[1].loss_fn_inputs.dp_unit_id"
    with pytest.raises(BudgetExceeded, match="1 of the 2 units"):
        ledger.reserve(run, 2, {7, 100})
    assert ledger.show("acme", "letters").steps == 2
    ledger.check_units(run, [8, 9, 100])
    ledger.reserve(run, 2, {8, 9, 100})


def test_check_units_refuses_data_without_units_and_units_that_return(ledger: Ledger) -> None:
    run = open_run(ledger)
    ledger.check_units(run, [5, 5, 6], accumulated={1, 2})
    with pytest.raises(InvalidRequest, match="every datum needs dp_unit_id"):
        ledger.check_units(run, [5, None])
    with pytest.raises(InvalidRequest, match="already in this step") as caught:
        ledger.check_units(run, [5, 2], accumulated={1, 2})
    assert caught.value.field == "data[1].loss_fn_inputs.dp_unit_id"


def test_the_budget_binds_over_all_runs_of_the_domain(ledger: Ledger) -> None:
    one = open_run(ledger, "one", max_epsilon=8.0)
    two = open_run(ledger, "two", max_epsilon=8.0)
    ledger.reserve(one, 0, {1})
    assert ledger.reserve(two, 0, {2}).epsilon == pytest.approx(6.573, abs=1e-3)
    state = ledger.show("acme", "letters")
    for run in (one, two):
        with pytest.raises(BudgetExceeded, match=r"to epsilon 8\.38.*now 6\.57.*max_epsilon is 8"):
            ledger.reserve(run, 1, {1, 2})
    assert ledger.show("acme", "letters") == state
    ledger.reserve(one, 1, {3})
    with pytest.raises(BudgetExceeded, match="the first step of this run"):
        open_run(ledger, "three", max_epsilon=8.0)


def test_an_empty_step_goes_through_even_when_others_have_spent_the_budget(ledger: Ledger) -> None:
    careful = open_run(ledger, "careful", max_epsilon=5.0)
    careless = open_run(ledger, "careless")
    for step in range(3):
        charge = ledger.reserve(careless, step, {1})
    assert ledger.reserve(careful, 0, ()).epsilon == charge.epsilon > 5.0
    with pytest.raises(BudgetExceeded):
        ledger.reserve(careful, 1, {9})


def test_max_steps_is_kept(ledger: Ledger) -> None:
    run = open_run(ledger, max_steps=2)
    ledger.reserve(run, 0, {1})
    ledger.reserve(run, 1, ())
    with pytest.raises(BudgetExceeded, match="max_steps=2"):
        ledger.reserve(run, 2, {2})
    ledger.reserve(run, 1, ())


def test_opening_a_run_is_idempotent_and_frozen(ledger: Ledger) -> None:
    run = open_run(ledger)
    ledger.reserve(run, 0, {1})
    assert open_run(ledger) == run
    assert ledger.show("acme", "letters").steps == 1
    assert ledger.mechanism(run) == MECHANISM
    with pytest.raises(Conflict, match="another mechanism"):
        open_run(ledger, noise_multiplier=2.0)
    with pytest.raises(Conflict, match="another mechanism or secret"):
        ledger.open_run("acme", "run-1", MECHANISM, noise_key_id=noise_key_id(secret_of("x")))


def test_delta_is_the_domains(ledger: Ledger) -> None:
    open_run(ledger)
    with pytest.raises(InvalidRequest, match="has delta=1e-05") as caught:
        open_run(ledger, "run-2", delta=1e-6)
    assert caught.value.field == "optimizer.delta"
    open_run(ledger, "run-2", delta=1e-6, domain="mails")


@pytest.mark.parametrize("domain", ["letters", "mails"])
def test_two_runs_never_share_a_noise_secret(ledger: Ledger, domain: str) -> None:
    open_run(ledger)
    with pytest.raises(Conflict, match="needs a fresh one"):
        ledger.open_run(
            "acme", "fork", replace(MECHANISM, domain=domain), noise_key_id=noise_key_id(secret_of("run-1"))
        )


def test_what_does_not_exist_is_not_found(ledger: Ledger) -> None:
    with pytest.raises(NotFound):
        ledger.show("acme", "letters")
    with pytest.raises(Gone):
        ledger.reserve(RunRef("acme", "letters", "run-1"), 0, {1})
    run = open_run(ledger)
    for stranger in (replace(run, tenant="rival"), replace(run, domain="mails")):
        with pytest.raises(Gone):
            ledger.check_units(stranger, [1])
    with pytest.raises(NotFound):
        ledger.reserve(replace(run, run_id="run-2"), 0, {1})
    with pytest.raises(NotFound, match="never charged"):
        ledger.commit(run, 3)


@pytest.mark.parametrize("name", ["a/b", "", "a b", "-a", "a" * 129, "a\n"])
def test_names_that_could_collide_in_storage_are_refused(name: str) -> None:
    for field in ("tenant", "domain", "run_id"):
        with pytest.raises(InvalidRequest):
            RunRef(**{"tenant": "t", "domain": "d", "run_id": "r", field: name})


@pytest.mark.parametrize("step", [-1, 10**15])
def test_a_step_out_of_range_is_refused(ledger: Ledger, step: int) -> None:
    with pytest.raises(InvalidRequest, match="step must be"):
        ledger.reserve(open_run(ledger), step, {1})


def test_extra_writes_share_the_transaction(ledger: Ledger, items: Items) -> None:
    run = open_run(ledger)
    fence, note = Key("stream/run-1", "fence"), Key("stream/run-1", "note")
    items.write([Put(fence, {"owner": "me"}, 0)])
    ledger.reserve(run, 0, {1}, extra_writes=[Check(fence, 1), Put(note, {}, 0)])
    assert items.get(note) is not None
    items.write([Put(fence, {"owner": "you"}, 1)])
    state = ledger.show("acme", "letters")
    with pytest.raises(ConditionFailed) as caught:
        ledger.reserve(run, 1, {1}, extra_writes=[Check(note, 1), Check(fence, 1)])
    assert caught.value.index == 1
    assert ledger.show("acme", "letters") == state


def test_commit_marks_the_row_and_refunds_nothing(ledger: Ledger, items: Items) -> None:
    run = open_run(ledger)
    charge = ledger.reserve(run, 0, {1})
    state = ledger.show("acme", "letters")
    note = Key("stream/run-1", "note")
    ledger.commit(run, 0, extra_writes=[Put(note, {}, 0)])
    row = items.get(run.row_item(0))
    assert row is not None
    assert row.body["state"] == "applied"
    assert items.get(note) is not None
    ledger.commit(run, 0)
    assert ledger.commit_writes(run, 0) == []
    assert ledger.reserve(run, 0, {1}) == charge
    assert ledger.show("acme", "letters") == state


def test_a_crash_between_reserve_and_commit_counts_as_spent(
    ledger: Ledger, items: Items, vault: Vault
) -> None:
    run = open_run(ledger, max_participations=1)
    charge = ledger.reserve(run, 0, {1})
    restarted = new_ledger(items, vault)
    assert restarted.show("acme", "letters").epsilon == charge.epsilon
    with pytest.raises(BudgetExceeded):
        restarted.check_units(run, [1])
    with pytest.raises(BudgetExceeded):
        restarted.reserve(run, 1, {1})
    assert restarted.reserve(run, 0, {1}) == charge


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_is_charged_once(items: Items, vault: Vault, when: str) -> None:
    flaky = FlakyItems(items)
    ledger = new_ledger(flaky, vault)
    run = open_run(ledger, max_participations=1)
    flaky.fail = when
    with pytest.raises(Unavailable):
        ledger.reserve(run, 0, {1})
    charge = ledger.reserve(run, 0, {1})
    assert charge.participations == 1
    assert ledger.show("acme", "letters").steps == 1
    flaky.fail = when
    with pytest.raises(Unavailable):
        open_run(ledger, "run-2")
    open_run(ledger, "run-2")
    assert len(ledger.show("acme", "letters").runs) == 2


def test_counts_are_rebuilt_over_many_rows(ledger: Ledger, items: Items, vault: Vault) -> None:
    run = open_run(ledger, max_participations=250)
    for step in range(230):
        ledger.reserve(run, step * 3, {1, 1000 + step})
    restarted = new_ledger(items, vault)
    assert restarted.reserve(run, 1000, {1}).participations == 231
    assert ledger.reserve(run, 1001, {1}).participations == 232
    assert replay(items, vault, "acme", "letters").runs[0].participations == 232


def test_erasing_a_run_refunds_nothing_and_erasing_the_domain_stops_it(
    ledger: Ledger, items: Items, vault: Vault
) -> None:
    run = open_run(ledger)
    ledger.reserve(run, 0, {1})
    items.write([Delete(run.scope.key_item, None)])
    vault.forget(run.scope)
    for act in (lambda: ledger.check_units(run, [1]), lambda: ledger.reserve(run, 1, {2})):
        with pytest.raises(Gone):
            act()
    assert ledger.show("acme", "letters").epsilon > 0


def test_no_unit_id_is_stored_or_logged(
    ledger: Ledger, items: Items, caplog: pytest.LogCaptureFixture
) -> None:
    canary = 0x5EC2E7C0FFEE1234
    run = open_run(ledger, max_participations=1)
    with caplog.at_level(logging.DEBUG):
        ledger.reserve(run, 0, {canary})
        with pytest.raises(BudgetExceeded) as caught:
            ledger.check_units(run, [canary])
        with pytest.raises(BudgetExceeded) as refused:
            ledger.reserve(run, 1, {canary})
    stored = [item for page in ("", "row") for item in items.query(run.scope.name, first=page, limit=1000)]
    text = " ".join(json.dumps(dict(item.body)) for item in stored) + caplog.text
    text += str(caught.value) + str(refused.value)
    sealed = b"".join(item.sealed for item in stored)
    for form in (str(canary), f"{canary:x}"):
        assert form not in text
    for form in (canary.to_bytes(8, "big"), canary.to_bytes(8, "little"), str(canary).encode()):
        assert form not in sealed


def test_damaged_storage_is_refused(ledger: Ledger, items: Items, vault: Vault) -> None:
    run = open_run(ledger)
    ledger.reserve(run, 0, {1})
    record = items.get(run.run_item)
    assert record is not None
    items.write([Put(record.key, {**record.body, "participations": 0}, record.version)])
    with pytest.raises(IntegrityError, match="does not agree with its rows"):
        new_ledger(items, vault).check_units(run, [1])


def test_a_full_domain_is_refused_by_name(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensafe.privacy.rules.MAX_RUNS_PER_DOMAIN", 2)
    open_run(ledger, "one")
    open_run(ledger, "two")
    with pytest.raises(InvalidRequest, match="has 2 runs, which is the most"):
        open_run(ledger, "three")


def test_the_largest_step_and_the_largest_domain_fit_an_item(items: Items, vault: Vault) -> None:
    from tensafe.privacy.records import Head, canonical
    from tensafe.privacy.rules import MAX_RUNS_PER_DOMAIN
    from tensafe.privacy.units import MAX_UNITS_PER_STEP
    from tensafe.storage.ports import ITEM_MAX_BYTES

    ledger = new_ledger(items, vault)
    run = open_run(ledger, "r" * 128, tenant="t" * 128, domain="d" * 128)
    ledger.reserve(run, 0, range(MAX_UNITS_PER_STEP), binding="b" * 128)
    full = Head(
        1e-5, 10**9, "f" * 64, {f"{n:0128d}": (1.2345678901234567, 10**6) for n in range(MAX_RUNS_PER_DOMAIN)}
    )
    assert len(canonical(full.to_body())) < ITEM_MAX_BYTES - 2000
