"""The ledger of dealt runs: charged whole, one row per deal, idempotent, never two charges of one step."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import (
    BudgetExceeded,
    Conflict,
    IntegrityError,
    InvalidRequest,
    TensafeError,
    Unavailable,
)
from tensafe.privacy import amplified, dealt_ledger, registration
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.dealt_ledger import DealtLedger
from tensafe.privacy.domains import Domains
from tensafe.privacy.export import Exporter
from tensafe.privacy.manifest import Manifest
from tensafe.privacy.noise import noise_key_id
from tensafe.privacy.records import RunRef
from tensafe.privacy.replay import replay
from tensafe.privacy.verify import verify
from tensafe.privacy.verify_forms import LedgerRefused
from tensafe.privacy.verify_replay import Report
from tensafe.storage.ports import Items, Put, Write
from tensafe.storage.signing import PublicKey
from tensafe.vault.vault import Vault
from tests.support.dealt_training import dealt
from tests.unit.privacy.support import (
    MECHANISM,
    SIGNER,
    FlakyItems,
    anchors_of,
    new_ledger,
    secret_of,
)

SEED = bytes(range(32))
CONFIG = dealt(domain="letters", noise_multiplier=2.0, batch_size=8, max_steps=20)


def new_dealt(items: Items, vault: Vault) -> DealtLedger:
    """As another process over the same stores would have it."""
    return DealtLedger(items, vault, SIGNER, anchors_of(vault), clock_ms=lambda: 1_700_000_000_000)


@pytest.fixture
def domains(items: Items, vault: Vault) -> Domains:
    """`letters` is registered with 100 units; hashes of nothing in particular."""
    made = Domains(items, vault)
    terms = DomainTerms(unit="record", delta=1e-5, max_epsilon=8.0)
    made.create("acme", "letters", terms)
    entries = b"".join(unit.to_bytes(8, "big") + bytes(32) for unit in range(100))
    made.add_units("acme", "letters", 0, entries)
    made.finish("acme", "letters")
    return made


@pytest.fixture
def ledger(domains: Domains, items: Items, vault: Vault) -> DealtLedger:
    return new_dealt(items, vault)


def opened(ledger: DealtLedger, run_id: str = "run-1", **changes: Any) -> RunRef:
    ref = RunRef("acme", "letters", run_id)
    config = dealt(**{**CONFIG.model_dump(exclude={"type"}), **changes})
    ledger.open_run(ref, config, noise_key_id=noise_key_id(secret_of(run_id)), deal_seed=SEED)
    return ref


def exported(items: Items, vault: Vault) -> list[bytes]:
    exporter = Exporter(items, vault, SIGNER, Anchoring(items, anchors_of(vault)))
    return list(exporter.lines("acme", "letters", at_ms=1))


def checked(lines: list[bytes]) -> Report:
    key = PublicKey.from_pem(SIGNER.public_key)
    return verify(io.BytesIO(b"".join(lines)), {key.key_id: key}, processes=1)


def test_the_opening_charges_the_whole_run_and_deals_move_nothing(
    ledger: DealtLedger, items: Items, vault: Vault
) -> None:
    run = opened(ledger)
    record = ledger.get(run)
    alone = amplified.epsilon(record.mechanism.gaussian, 20, 1e-5)
    assert record.epsilon == alone == ledger.epsilon(run)
    issued = [ledger.deal(run, step) for step in range(3)]
    assert {one.epsilon for one in issued} == {alone}
    assert [one.charge.step for one in issued] == [1, 2, 3]
    shown = replay(items, vault, "acme", "letters")
    assert (shown.epsilon, shown.steps) == (alone, 4)
    (one,) = shown.runs
    assert (one.steps, one.abandoned, one.max_steps, one.participations) == (3, 2, 20, None)


def test_the_law_of_deals_is_frozen_with_room_that_never_cuts(ledger: DealtLedger) -> None:
    mechanism = ledger.get(opened(ledger)).mechanism
    assert mechanism.sampling_probability == 0.08
    assert mechanism.batch_cap == 100 - 23, "8 + 10 sqrt 8 + 40, rounded up"
    assert mechanism.units == mechanism.gaussian.units == 100
    assert mechanism.from_body(mechanism.to_body()) == mechanism
    with pytest.raises(IntegrityError):
        mechanism.from_body({**mechanism.to_body(), "extra": 1})


def test_to_add_a_unit_is_accounted_with_one_more(items: Items, vault: Vault) -> None:
    made = Domains(items, vault)
    terms = DomainTerms(unit="record", adjacency="add_or_remove_one_unit", delta=1e-5, max_epsilon=8.0)
    made.create("acme", "letters", terms)
    made.add_units("acme", "letters", 0, b"".join(n.to_bytes(8, "big") + bytes(32) for n in range(50)))
    made.finish("acme", "letters")
    ledger = new_dealt(items, vault)
    run = opened(ledger)
    assert ledger.get(run).mechanism.gaussian.units == 51
    ledger.deal(run, 0)
    assert checked(exported(items, vault)).adjacency == "add_or_remove_one_unit"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_charges_once(domains: Domains, items: Items, vault: Vault, when: str) -> None:
    flaky = FlakyItems(items)
    ledger = DealtLedger(flaky, vault, SIGNER, anchors_of(vault))
    flaky.fail = when
    with pytest.raises(Unavailable):
        opened(ledger)
    run = opened(ledger)
    flaky.fail = when
    with pytest.raises(Unavailable):
        ledger.deal(run, 0)
    assert ledger.deal(run, 0).charge == ledger.deal(run, 0).charge
    assert replay(items, vault, "acme", "letters").steps == 2


def test_concurrent_issuers_of_one_step_make_one_charge(
    ledger: DealtLedger, items: Items, vault: Vault
) -> None:
    run, barrier = opened(ledger), Barrier(6)

    def ask(_: int) -> object:
        barrier.wait(timeout=10)
        return new_dealt(items, vault).deal(run, 0).charge

    with ThreadPoolExecutor(6) as pool:
        charges = list(pool.map(ask, range(6)))
    assert len({repr(charge) for charge in charges}) == 1
    assert replay(items, vault, "acme", "letters").steps == 2
    assert ledger.get(run).deals.dealt == 1


def test_concurrent_openings_never_overspend_the_domain(
    ledger: DealtLedger, items: Items, vault: Vault
) -> None:
    """Room for two of them and not for three."""
    barrier = Barrier(4)

    def open_one(number: int) -> object:
        barrier.wait(timeout=10)
        try:
            return opened(new_dealt(items, vault), f"run-{number}", noise_multiplier=1.0, max_steps=80)
        except BudgetExceeded as refused:
            return refused

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(open_one, range(4)))
    shown = replay(items, vault, "acme", "letters")
    assert len(shown.runs) == sum(isinstance(one, RunRef) for one in outcomes) == 2
    assert shown.epsilon <= 8.0
    with pytest.raises(BudgetExceeded, match="has no room for 80 deals"):
        opened(ledger, "run-9", noise_multiplier=1.0, max_steps=80)


def test_a_completion_loses_against_whoever_abandons(ledger: DealtLedger, items: Items) -> None:
    run = opened(ledger)
    ledger.deal(run, 0)
    writes = ledger.completion(run, 0)
    ledger.abandon(run, 0)
    with pytest.raises(Exception, match=r".*"):
        items.write(writes)
    assert ledger.get(run).deals.abandoned == 1
    with pytest.raises(Conflict, match="is abandoned and charged"):
        ledger.completion(run, 0)
    ledger.deal(run, 1)
    items.write(ledger.completion(run, 1))
    assert (ledger.get(run).deals.completed, ledger.open_deal(run)) == (1, None)


def test_a_domain_that_closes_meanwhile_is_charged_nothing(
    ledger: DealtLedger, domains: Domains, items: Items, vault: Vault
) -> None:
    run = opened(ledger)
    domains.close("acme", "letters")
    for act in (lambda: ledger.deal(run, 0), lambda: opened(ledger, "run-2")):
        with pytest.raises(Conflict, match="is closed"):
            act()
    assert replay(items, vault, "acme", "letters").steps == 1


class Interposed(FlakyItems):
    """Something happens between a decision and its write, once."""

    before: Callable[[], object] | None = None

    def write(self, writes: Sequence[Write]) -> None:
        act, self.before = self.before, None
        if act is not None:
            act()
        super().write(writes)


def test_closing_a_domain_cannot_race_with_a_charge(domains: Domains, items: Items, vault: Vault) -> None:
    between = Interposed(items)
    ledger = DealtLedger(between, vault, SIGNER, anchors_of(vault))
    run = opened(ledger)
    between.before = lambda: domains.close("acme", "letters")
    with pytest.raises(Conflict, match="is closed"):
        ledger.deal(run, 0)
    assert replay(items, vault, "acme", "letters").steps == 1


def test_bounded_and_dealt_runs_share_a_budget(ledger: DealtLedger, items: Items, vault: Vault) -> None:
    bounded = new_ledger(items, vault)
    mechanism = replace(MECHANISM, noise_multiplier=2.0, max_epsilon=None)
    beside = bounded.open_run("acme", "plain", mechanism, noise_key_id=noise_key_id(secret_of("plain")))
    run = opened(ledger)
    whole = ledger.epsilon(run)
    charge = bounded.reserve(beside, 0, {1, 2})
    spent = amplified.Spent(gaussian_mu_squared=0.25).plus(ledger.get(run).mechanism.gaussian, 20)
    assert charge.epsilon == amplified.total_epsilon(spent, 1e-5) > whole
    assert ledger.deal(run, 0).epsilon == charge.epsilon
    loud = replace(MECHANISM, noise_multiplier=0.8)
    secret = noise_key_id(secret_of("loud"))
    rest = bounded.open_run("acme", "loud", loud, noise_key_id=secret, fixed_in_advance=True)
    bounded.reserve(rest, 0, {1})
    with pytest.raises(BudgetExceeded, match="max_epsilon, over all its runs, is 8"):
        bounded.reserve(rest, 1, {1})
    report = checked(exported(items, vault))
    shown = replay(items, vault, "acme", "letters")
    assert report.epsilon == pytest.approx(shown.epsilon, rel=2e-3)
    assert shown == bounded.show("acme", "letters")


def test_a_late_bounded_run_beside_dealt_ones_must_be_declared(
    ledger: DealtLedger, items: Items, vault: Vault
) -> None:
    run, bounded = opened(ledger), new_ledger(items, vault)
    ledger.deal(run, 0)
    key = noise_key_id(secret_of("late"))
    with pytest.raises(InvalidRequest, match="fixed_in_advance=true"):
        bounded.open_run("acme", "late", MECHANISM, noise_key_id=key)
    bounded.open_run("acme", "late", MECHANISM, noise_key_id=key, fixed_in_advance=True)
    assert [one.fixed_in_advance for one in bounded.show("acme", "letters").runs] == [True, False]


def test_a_manifest_that_is_registered_after_a_release_does_not_make_it_undone(
    items: Items, vault: Vault
) -> None:
    bounded, key = new_ledger(items, vault), noise_key_id(secret_of("first"))
    first = bounded.open_run("acme", "letters-first", MECHANISM, noise_key_id=key)
    bounded.reserve(first, 0, {77})
    made = Domains(items, vault)
    made.create("acme", "letters", DomainTerms(unit="record", delta=1e-5, max_epsilon=8.0))
    made.add_units("acme", "letters", 0, b"".join(n.to_bytes(8, "big") + bytes(32) for n in range(50)))
    made.finish("acme", "letters")
    ledger = new_dealt(items, vault)
    with pytest.raises(InvalidRequest, match="fixed_in_advance=true"):
        opened(ledger)
    opened(ledger, fixed_in_advance=True)
    report = checked(exported(items, vault))
    assert report.registered is not None
    assert (report.rows, report.registered.earlier_rows, report.registered.units) == (2, 1, 50)


def test_a_noise_secret_belongs_to_one_run(ledger: DealtLedger) -> None:
    opened(ledger)
    ref = RunRef("acme", "letters", "run-2")
    with pytest.raises(Conflict, match="another run draws its noise"):
        ledger.open_run(ref, CONFIG, noise_key_id=noise_key_id(secret_of("run-1")), deal_seed=SEED)


def test_a_store_that_is_put_back_deals_nothing(ledger: DealtLedger, items: Items, vault: Vault) -> None:
    run = opened(ledger)
    head, record = items.get(run.scope.key_item), items.get(run.run_item)
    assert head is not None
    assert record is not None
    before = items.get(type(record.key)(run.scope.name, "head"))
    ledger.deal(run, 0)
    now = items.get(type(record.key)(run.scope.name, "head"))
    assert before is not None
    assert now is not None
    items.write([Put(now.key, before.body, now.version)])
    with pytest.raises(IntegrityError, match="older copy"):
        new_dealt(items, vault).deal(run, 1)


CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another delta": ({"delta": 1e-6}, "is registered with delta=1e-05"),
    "astronomic": ({"noise_multiplier": 0.11, "max_steps": 1000}, "has no room for 1000 deals"),
    "a cap below the mean": ({"batch_cap": 7}, "batch_cap must be from the mean of a deal, 8.0 units"),
    "sigma out of range": ({"noise_multiplier": 0.01}, "noise_multiplier must be from 0.1"),
    "too many steps": ({"max_steps": 2_000_000}, "at most 1000000 steps"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_what_cannot_be_kept_is_refused_and_charges_nothing(
    ledger: DealtLedger, items: Items, case: str
) -> None:
    changes, says = CONFIGURATIONS[case]
    with pytest.raises(TensafeError) as caught:
        opened(ledger, **changes)
    assert says in caught.value.message
    assert items.query("domain/acme/letters", first="row/", last="row/~") == []


def test_an_epsilon_that_protects_nobody_is_let_in_by_name_alone(items: Items, vault: Vault) -> None:
    """In a domain whose budget would allow it."""
    made = Domains(items, vault)
    made.create("acme", "letters", DomainTerms(unit="record", delta=1e-5, max_epsilon=1e6))
    made.add_units("acme", "letters", 0, b"".join(n.to_bytes(8, "big") + bytes(32) for n in range(20)))
    made.finish("acme", "letters")
    ledger = new_dealt(items, vault)
    loud = {"noise_multiplier": 0.2, "max_steps": 8, "batch_size": 10}
    with pytest.raises(InvalidRequest, match="allow_weak_privacy=true to accept it by name") as caught:
        opened(ledger, **loud)
    assert caught.value.field == "optimizer.noise_multiplier"
    assert items.query("domain/acme/letters", first="row/", last="row/~") == []
    assert 100 < ledger.get(opened(ledger, **loud, allow_weak_privacy=True)).epsilon < 300


def test_the_noise_is_found_for_a_target(ledger: DealtLedger) -> None:
    record = ledger.get(opened(ledger, noise_multiplier=None, target_epsilon=1.0))
    assert 0.99 < record.epsilon <= 1.0


class Forger:
    """An export with a run of each kind; a change of row `number`, hashed and signed anew if `signed`."""

    def __init__(self, items: Items, vault: Vault, ledger: DealtLedger) -> None:
        bounded = new_ledger(items, vault)
        run = opened(ledger)
        other = bounded.open_run("acme", "two", MECHANISM, noise_key_id=noise_key_id(secret_of("two")))
        ledger.deal(run, 0)
        ledger.deal(run, 1)
        bounded.reserve(other, 0, {3})
        ledger.deal(run, 2)
        self.lines = exported(items, vault)

    def with_row(self, number: int, **changes: Any) -> list[bytes]:
        from tests.unit.privacy.exports import Exported

        forger = object.__new__(Exported)
        forger.lines, forger.signer = self.lines, SIGNER
        return forger.forged(row=number, change=lambda row: row.update(changes))

    def with_header(self, change: Callable[[dict[str, Any]], object]) -> list[bytes]:
        from tests.unit.privacy.exports import Exported

        forger = object.__new__(Exported)
        forger.lines, forger.signer = self.lines, SIGNER
        return forger.forged(header=change)


@pytest.fixture
def forger(ledger: DealtLedger, items: Items, vault: Vault) -> Forger:
    return Forger(items, vault, ledger)


FORGED: dict[str, tuple[int, dict[str, Any], str]] = {
    "the opening understates its run": (1, {"run_epsilon": 0.5}, "states run_epsilon 0.5"),
    "the opening understates the domain": (1, {"epsilon": 0.5}, "states epsilon 0.5"),
    "a deal understates the domain": (2, {"epsilon": 0.5}, "states epsilon 0.5"),
    "a bounded row forgets the dealt run": (4, {"epsilon": 4.377}, "states epsilon 4.377"),
    "more noise": (2, {"noise_multiplier": 9.0}, "noise_multiplier is not that"),
    "a smaller q": (2, {"sampling_probability": 0.01}, "sampling_probability is not that"),
    "another manifest": (2, {"manifest_digest": "0" * 64}, "manifest_digest is not that"),
    "another seed": (3, {"deal_commitment": "0" * 64}, "deal_commitment is not that"),
    "more steps": (1, {"max_steps": 30}, "max_steps is not that"),
    "a deal again": (3, {"index": 0, "step": 1}, "out of its order"),
    "abandoned deals are forgotten": (5, {"abandoned": 0}, "abandoned before it"),
    "a second opening": (2, {"kind": "opening", "index": None, "step": 0}, "open already"),
    "a declaration": (2, {"fixed_in_advance": True}, "fixed_in_advance is not that"),
    "a field more": (2, {"refund": True}, "refund"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_signed_forgery_is_caught_by_its_row(forger: Forger, case: str) -> None:
    assert checked(forger.lines).rows == 5
    row, changes, says = FORGED[case]
    with pytest.raises(LedgerRefused, match=says) as caught:
        checked(forger.with_row(row, **changes))
    assert caught.value.where.startswith(f"row {row}")


@pytest.mark.parametrize("declared", [True, False])
def test_a_run_that_opens_after_a_release_must_say_so_in_its_rows(
    ledger: DealtLedger, items: Items, vault: Vault, declared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a service would write that lets its owner choose by what was released."""
    ledger.deal(opened(ledger), 0)
    monkeypatch.setattr(dealt_ledger, "_refuse_late", lambda *_: None)
    opened(ledger, "run-2", fixed_in_advance=declared)
    lines = exported(items, vault)
    if declared:
        assert checked(lines).rows == 3
        return
    with pytest.raises(LedgerRefused, match="opens after a release") as caught:
        checked(lines)
    assert caught.value.where.startswith("row 3")


def test_a_header_that_promises_other_noise_is_caught(forger: Forger) -> None:
    def more(header: dict[str, Any]) -> None:
        header["runs"]["run-1"]["mechanism"]["noise_multiplier"] = 4.0

    with pytest.raises(LedgerRefused, match="noise_multiplier is not that"):
        checked(forger.with_header(more))


REGISTERED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "more units": (lambda it: it.update(units=1000), "manifest_digest is not that"),
    "another root": (lambda it: it.update(root="0" * 64), "manifest_digest is not that"),
    "more budget": (lambda it: it["terms"].update(max_epsilon=80.0), "manifest_digest is not that"),
    "users, not records": (lambda it: it["terms"].update(unit="user"), "manifest_digest is not that"),
    "another delta": (lambda it: it["terms"].update(delta=1e-6), "another delta"),
    "earlier rows": (lambda it: it.update(earlier_rows=6), "more rows came before"),
}


@pytest.mark.parametrize("case", REGISTERED)
def test_a_signed_header_with_another_registration_is_caught(forger: Forger, case: str) -> None:
    change, says = REGISTERED[case]
    with pytest.raises(LedgerRefused, match=says) as caught:
        checked(forger.with_header(lambda header: change(header["registered"])))
    assert caught.value.where == "header"


def test_a_header_cannot_swap_manifests_or_leave_the_registration_out(forger: Forger) -> None:
    """A whole other manifest has a digest that fits; the runs were dealt from this one."""
    other = Manifest(DomainTerms(unit="record", delta=1e-5, max_epsilon=8.0), bytes(40), bytes(32))

    def swapped(header: dict[str, Any]) -> None:
        header["registered"] |= {"units": 1, "root": "0" * 64, "manifest_digest": other.digest}

    with pytest.raises(LedgerRefused, match="run run-1 is dealt from another manifest"):
        checked(forger.with_header(swapped))
    with pytest.raises(LedgerRefused, match="registered"):
        checked(forger.with_header(lambda header: header.pop("registered")))


def test_an_export_says_how_its_domain_is_registered(ledger: DealtLedger, items: Items, vault: Vault) -> None:
    opened(ledger)
    stated = checked(exported(items, vault)).registered
    domain = Domains(items, vault).get("acme", "letters")
    assert stated is not None
    assert (stated.units, stated.root, stated.manifest_digest) == (
        100,
        domain.root,
        domain.manifest_digest,
    )
    assert (stated.terms.max_epsilon, stated.terms.unit, stated.earlier_rows) == (8.0, "record", 0)


def test_no_row_passes_the_registered_budget(
    ledger: DealtLedger, items: Items, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a service would write that does not hold its runs to it."""
    bounded = new_ledger(items, vault)
    opened(ledger)
    loud = replace(MECHANISM, noise_multiplier=0.6, max_epsilon=None)
    monkeypatch.setattr(registration, "_refuse_unfit", lambda *_: None)
    monkeypatch.setattr(
        bounded._registration,
        "admits_charge",
        lambda scope, *_: bounded._registration.admits_run(scope, loud, None),
    )
    ref = bounded.open_run("acme", "loud", loud, noise_key_id=noise_key_id(secret_of("loud")))
    bounded.reserve(ref, 0, {1})
    with pytest.raises(LedgerRefused, match="over the domain's max_epsilon 8") as caught:
        checked(exported(items, vault))
    assert caught.value.where.startswith("row 2")


def names(error: LedgerRefused, row: int) -> bool:
    return error.where == f"row {row}" or error.where.startswith(f"row {row} (")


@pytest.mark.parametrize("row", range(1, 6))
def test_a_row_that_is_dropped_moved_or_cut_off_is_named(forger: Forger, row: int) -> None:
    lines = forger.lines
    cases = [[*lines[:row], *lines[row + 1 :]], lines[:row], [*lines[:row], lines[row][:-9]]]
    if row < 5:
        cases.append([*lines[:row], lines[row + 1], lines[row], *lines[row + 2 :]])
    for tampered in cases:
        with pytest.raises(LedgerRefused) as caught:
            checked(tampered)
        assert names(caught.value, row), caught.value


def test_every_byte_of_an_opening_a_deal_and_a_bounded_row_counts(forger: Forger) -> None:
    """Not a sample: the three kinds of rows that an export with dealt runs has."""
    kinds = {
        json.loads(json.loads(line)["row"]).get("kind"): at for at, line in enumerate(forger.lines[1:-1], 1)
    }
    assert set(kinds) == {"opening", "deal", None}
    for row in kinds.values():
        raw = forger.lines[row]
        for at in range(len(raw)):
            changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            with pytest.raises(LedgerRefused) as caught:
                checked([*forger.lines[:row], changed, *forger.lines[row + 1 :]])
            assert names(caught.value, row), (row, at, caught.value)


def test_an_export_shows_nobody_who_was_dealt(forger: Forger) -> None:
    texts = [json.loads(line) for line in forger.lines[1:-1]]
    dealt_rows = [line for line in texts if json.loads(line["row"])["version"] == 3]
    assert len(dealt_rows) == 4
    assert {line["tags"] for line in dealt_rows} == {""}
    assert not {"units", "units_digest", "drawn"} & {*json.loads(dealt_rows[0]["row"])}


def test_an_export_does_not_show_how_long_a_deal_took(domains: Domains, items: Items, vault: Vault) -> None:
    """The more units a deal has, and the longer they are, the later the next one is asked for."""
    now = [1_700_000_000_000]
    ledger = DealtLedger(items, vault, SIGNER, anchors_of(vault), clock_ms=lambda: now[0])
    run = opened(ledger)
    for step, took_ms in enumerate((10, 9_000, 10)):
        ledger.deal(run, step)
        now[0] += took_ms
    rows = [json.loads(json.loads(line)["row"]) for line in exported(items, vault)[1:-1]]
    assert [row["at_ms"] for row in rows] == [1_700_000_000_000, 0, 0, 0]
    assert checked(exported(items, vault)).rows == 4
