"""Separation and correlated noise in the ledger: counted, charged once and whole, and recomputed."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from tensafe.contracts.errors import BudgetExceeded, Conflict, IntegrityError, InvalidRequest
from tensafe.privacy import noise
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.bisr import coefficient_hash, coefficients, sensitivity
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.records import RunRef, canonical, head_item, sha256_hex
from tensafe.privacy.release import noisy_mean
from tensafe.privacy.replay import replay
from tensafe.storage.ports import Items, Put
from tensafe.vault.vault import Vault
from tests.unit.privacy.support import new_ledger, open_run, secret_of

SENSITIVITY = sensitivity(4, steps=12, participations=3, min_separation=4)
BISR: dict[str, Any] = {
    "noise_multiplier": 4.0,
    "max_steps": 12,
    "min_separation": 4,
    "bisr_bandwidth": 4,
    "sensitivity": SENSITIVITY,
}
WHOLE = epsilon({"run": (4.0 / SENSITIVITY, 1)}, 1e-5)


def test_a_unit_returns_after_the_separation_and_not_before(ledger: Ledger) -> None:
    """Steps without units and steps of others count: the noise has gone on meanwhile."""
    run = open_run(ledger, min_separation=3)
    ledger.reserve(run, 10, {1, 2})
    for step, taken in ((20, {3}), (30, set[int]())):
        with pytest.raises(InvalidRequest, match="min_separation=3"):
            ledger.check_units(run, [4, 1])
        with pytest.raises(InvalidRequest, match=r"min_separation=3 steps ago\. No noise was drawn"):
            ledger.reserve(run, step, {4, 1})
        ledger.reserve(run, step, taken)
    ledger.check_units(run, [4, 1])
    assert ledger.reserve(run, 40, {4, 1}).participations == 2
    assert ledger.mechanism(run).min_separation == 3


def test_the_refusal_names_the_position_and_the_wait(ledger: Ledger) -> None:
    run = open_run(ledger, min_separation=5)
    ledger.reserve(run, 0, {1})
    ledger.reserve(run, 1, {2})
    with pytest.raises(InvalidRequest, match=r"position 2, may return after 3 more step\(s\)") as caught:
        ledger.check_units(run, [7, 8, 1, 2])
    assert caught.value.field == "data[2].loss_fn_inputs.dp_unit_id"
    assert caught.value.args[0].startswith("2 of 4 data")


def test_the_separation_outlives_the_process(ledger: Ledger, items: Items, vault: Vault) -> None:
    run = open_run(ledger, min_separation=2)
    ledger.reserve(run, 0, {1})
    fresh = new_ledger(items, vault)
    with pytest.raises(InvalidRequest):
        fresh.reserve(run, 1, {1})
    fresh.reserve(run, 1, ())
    new_ledger(items, vault).reserve(run, 2, {1})


def test_independent_noise_with_a_separation_is_charged_as_ever(ledger: Ledger) -> None:
    run = open_run(ledger, min_separation=2, noise_multiplier=1.0)
    assert ledger.reserve(run, 0, {1}).epsilon == pytest.approx(4.377, abs=1e-3)
    ledger.reserve(run, 1, ())
    assert ledger.reserve(run, 2, {1}).epsilon == epsilon({"run": (1.0, 2)}, 1e-5)


def test_correlated_noise_is_charged_whole_before_the_first_step(ledger: Ledger) -> None:
    run = open_run(ledger, **BISR)
    assert ledger.spent(run) == 0.0
    assert ledger.reserve(run, 0, ()).epsilon == 0.0, "nothing of anybody has been released"
    taken: list[set[int]] = [{1}, {2}, set(), set(), {1}]
    charges = [ledger.reserve(run, 10 + at, units) for at, units in enumerate(taken)]
    assert [charge.epsilon for charge in charges] == [WHOLE] * 5
    assert [charge.run_epsilon for charge in charges] == [WHOLE] * 5
    assert [charge.index for charge in charges] == [1, 2, 3, 4, 5]


def test_correlated_noise_composes_with_the_other_runs(ledger: Ledger) -> None:
    ledger.reserve(open_run(ledger, "other"), 0, {1})
    run = open_run(ledger, **BISR)
    charge = ledger.reserve(run, 0, {1})
    mu_2 = 1.0 + (SENSITIVITY / 4.0) ** 2
    assert charge.epsilon == pytest.approx(epsilon({"all": (mu_2**-0.5, 1)}, 1e-5), rel=1e-9)
    assert charge.run_epsilon == WHOLE


def test_a_budget_without_room_for_the_whole_run_refuses_it_before_any_noise(ledger: Ledger) -> None:
    with pytest.raises(BudgetExceeded, match="first step"):
        open_run(ledger, **BISR, max_epsilon=WHOLE * 0.99)
    run = open_run(ledger, "fits", **BISR, max_epsilon=WHOLE)
    ledger.reserve(open_run(ledger, "other", noise_multiplier=50.0), 0, {9})
    with pytest.raises(BudgetExceeded, match="No noise was drawn"):
        ledger.reserve(run, 0, {1})
    assert ledger.show("acme", "letters").steps == 1


def test_the_steps_of_a_correlated_run_end(ledger: Ledger) -> None:
    run = open_run(ledger, **BISR)
    for step in range(12):
        ledger.reserve(run, step, {step})
    with pytest.raises(BudgetExceeded, match="max_steps=12"):
        ledger.reserve(run, 12, {99})


def test_a_step_draws_the_noise_of_its_index(ledger: Ledger) -> None:
    """Not of its number in the log, which has gaps; and a retry draws the same."""
    run = open_run(ledger, **BISR, clip_norm=0.5, batch_size=16)
    total = np.linspace(-1, 1, 501)
    released = {}
    for step in (3, 17, 40):
        released[step] = noisy_mean(ledger.reserve(run, step, {step}), secret_of("run-1"), total)
    weights = coefficients(4)
    for index, step in enumerate((3, 17, 40)):
        drawn = noise.correlated_gaussian(secret_of("run-1"), index, weights, 501, 2.0)
        assert released[step] == pytest.approx((total + drawn) / 16, abs=1e-8)
        again = noisy_mean(ledger.reserve(run, step, {step}), secret_of("run-1"), total)
        assert again.tobytes() == released[step].tobytes()
    with pytest.raises(Conflict):
        ledger.reserve(run, 17, {1})


def test_a_refused_step_uses_no_index(ledger: Ledger) -> None:
    run = open_run(ledger, **BISR)
    ledger.reserve(run, 0, {1})
    with pytest.raises(InvalidRequest):
        ledger.reserve(run, 1, {1})
    assert ledger.reserve(run, 2, {2}).index == 1


def test_the_rows_and_the_statement_name_the_mechanism(ledger: Ledger, items: Items) -> None:
    run = open_run(ledger, **BISR)
    ledger.reserve(run, 4, {1})
    row = _row(items, run, 4)
    assert {name: row[name] for name in ("version", "mode", "index", "bisr_bandwidth", "min_separation")} == {
        "version": 2,
        "mode": "bounded_participation_bisr_gaussian",
        "index": 0,
        "bisr_bandwidth": 4,
        "min_separation": 4,
    }
    assert row["accountant"] == "dp-accounting/gaussian-mechanism/k-b-sensitivity/v1"
    assert (row["sensitivity"], row["max_steps"]) == (SENSITIVITY, 12)
    assert row["coefficient_hash"] == coefficient_hash(4)
    (shown,) = ledger.show("acme", "letters").runs
    assert (shown.mode, shown.coefficient_hash) == (row["mode"], row["coefficient_hash"])
    assert (shown.noise_multiplier, shown.sensitivity, shown.epsilon) == (4.0, SENSITIVITY, WHOLE)
    assert (shown.participations, shown.max_participations) == (1, 3)


def test_rows_of_both_versions_make_one_chain(ledger: Ledger, items: Items, vault: Vault) -> None:
    plain, correlated = open_run(ledger, "plain"), open_run(ledger, "correlated", **BISR)
    ledger.reserve(plain, 0, {1})
    ledger.reserve(correlated, 0, {1})
    ledger.reserve(plain, 1, {1, 2})
    versions = [_row(items, ref, step)["version"] for ref, step in ((plain, 0), (correlated, 0), (plain, 1))]
    assert versions == [1, 2, 1]
    assert replay(items, vault, "acme", "letters") == ledger.show("acme", "letters")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("index", 1),
        ("max_steps", 13),
        ("min_separation", 1),
        ("bisr_bandwidth", 5),
        ("sensitivity", 1.0),
        ("coefficient_hash", "0" * 64),
        ("mode", "bounded_participation_independent_gaussian"),
        ("version", 1),
    ],
)
def test_a_row_that_states_another_mechanism_is_found(
    ledger: Ledger, items: Items, vault: Vault, field: str, value: object
) -> None:
    """Even by somebody who gives the row and the head fresh hashes."""
    run = open_run(ledger, **BISR)
    ledger.reserve(run, 0, {1})
    item, head = items.get(run.row_item(0)), items.get(head_item(run.scope))
    assert item is not None
    assert head is not None
    text = canonical({**json.loads(str(item.body["row"])), field: value})
    body = {**item.body, "row": text, "hash": sha256_hex(text)}
    items.write(
        [
            Put(item.key, body, item.version, item.sealed),
            Put(head.key, {**head.body, "hash": body["hash"]}, head.version),
        ]
    )
    with pytest.raises(IntegrityError):
        replay(items, vault, "acme", "letters")


def test_a_run_that_understates_its_sensitivity_is_found(items: Items, vault: Vault) -> None:
    """Everything agrees with everything, except with the coefficients."""
    ledger = new_ledger(items, vault)
    run = open_run(ledger, **{**BISR, "sensitivity": SENSITIVITY * 0.999})
    ledger.reserve(run, 0, {1})
    with pytest.raises(IntegrityError, match="its coefficients give"):
        replay(items, vault, "acme", "letters")


def test_a_row_before_the_separation_is_found(items: Items, vault: Vault) -> None:
    """Rows written under a smaller separation than the run states now."""
    ledger = new_ledger(items, vault)
    run = open_run(ledger, min_separation=2)
    for step, unit in ((0, 1), (1, 2), (2, 1)):
        ledger.reserve(run, step, {unit})
    record = items.get(run.run_item)
    assert record is not None
    mechanism = {**dict(record.body["mechanism"]), "min_separation": 3}  # type: ignore[call-overload]
    items.write([Put(record.key, {**record.body, "mechanism": mechanism}, record.version)])
    with pytest.raises(IntegrityError, match="before its separation"):
        replay(items, vault, "acme", "letters")


def test_a_stored_row_of_version_2_never_changes(ledger: Ledger, items: Items) -> None:
    run = open_run(ledger, **BISR)
    ledger.reserve(run, 0, {1})
    assert sorted(_row(items, run, 0)) == sorted(
        re.findall(
            r"\w+",
            "accountant adjacency at_ms batch_size binding bisr_bandwidth clip_norm coefficient_hash delta "
            "epsilon index max_participations max_steps min_separation mode noise_key_id noise_multiplier "
            "participations previous run_epsilon run_id sensitivity seq step units units_digest version",
        )
    )


def _row(items: Items, ref: RunRef, step: int) -> dict[str, Any]:
    item = items.get(ref.row_item(step))
    assert item is not None
    return dict(json.loads(str(item.body["row"])))
