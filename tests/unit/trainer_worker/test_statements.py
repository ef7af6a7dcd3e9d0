"""Whatever a run saves comes with a signed privacy statement, and the statement is true."""

from __future__ import annotations

import copy
import io
import json
import os
from typing import Any

import pytest

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.errors import IntegrityError, InvalidRequest, NotFound, Unavailable
from tensafe.operations.checkpoints import CheckpointKind, statement_of
from tensafe.operations.records import OpKind, OpState
from tensafe.packages.bundle import unpack_files
from tensafe.privacy.artifact_statement import JSON_FILE, NOT_COVERED, TEXT_FILE, check_statement, rounded_up
from tensafe.privacy.closed_form import epsilon_of
from tensafe.privacy.statement_check import check_against_ledger
from tensafe.privacy.statement_text import text_of
from tensafe.privacy.verify import verify
from tensafe.privacy.verify_forms import LedgerRefused
from tensafe.storage.signing import PublicKey
from tensafe_gpu.trainer import private_steps, statements
from tests.support.dealt_training import dealt
from tests.support.training_log import forward_backward, load, optim_step, private, save
from tests.unit.operations.world import TENANT
from tests.unit.trainer_worker.rig import RUN, Rig

OTHER = "s-1:train:1"


@pytest.fixture(autouse=True)
def _fresh_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in service: the ledger refuses two runs with one secret."""
    monkeypatch.setattr(private_steps, "os", os)


def keys(rig: Rig) -> dict[str, PublicKey]:
    key = PublicKey.from_pem(rig.services.ports.signer.public_key)
    return {key.key_id: key}


def register(rig: Rig, *units: int, **terms: Any) -> None:
    domains = rig.world.services.domains
    domains.create(TENANT, "letters", DomainTerms(unit="record", delta=1e-5, max_epsilon=90.0, **terms))
    entries = b"".join(unit.to_bytes(8, "big", signed=True) + bytes(32) for unit in units)
    domains.add_units(TENANT, "letters", 0, entries)
    domains.finish(TENANT, "letters")


def statement(rig: Rig, name: str, run_id: str = RUN, kind: CheckpointKind = CheckpointKind.TRAINING) -> Any:
    return statement_of(rig.services.checkpoints.find(run_id, kind, name, TENANT))


def content(rig: Rig, name: str, kind: CheckpointKind, run_id: str = RUN) -> bytes:
    checkpoint = rig.services.checkpoints.find(run_id, kind, name, TENANT)
    return rig.services.checkpoints.read(rig.world.stream(run_id), checkpoint)


def export(rig: Rig) -> io.BytesIO:
    return io.BytesIO(b"".join(rig.services.domain_reader.export(TENANT, "letters", at_ms=0)))


def trained(rig: Rig) -> None:
    """Two runs of a registered domain; unit 1 takes part twice in the first. Saved before and after."""
    register(rig, 1, 2, 3)
    rig.begin(optimizer=private(max_participations=3, noise_multiplier=2.0, max_epsilon=50.0))
    rig.do(1, forward_backward(units=(1, 2)))
    rig.do(2, optim_step())
    rig.do(3, save("early"))
    rig.do(4, forward_backward(units=(1,)))
    rig.do(5, optim_step())
    rig.begin(OTHER, optimizer=private(noise_multiplier=4.0))
    rig.do(1, forward_backward(units=(3,)), OTHER)
    rig.do(2, optim_step(), OTHER)
    rig.do(6, save("late"))


def test_its_numbers_are_those_of_a_replay_of_the_exported_ledger(rig: Rig) -> None:
    trained(rig)
    early, late = statement(rig, "early"), statement(rig, "late")
    assert (early["ledger"]["rows"], late["ledger"]["rows"]) == (1, 3)
    exported = export(rig)
    report = verify(exported, keys(rig), processes=1)
    assert late["ledger"]["head_hash"] == report.head_hash
    assert late["spent"]["epsilon"] == pytest.approx(report.epsilon, rel=1e-5)
    own = next(run for run in report.runs if run.run_id == RUN)
    assert late["spent"]["run_epsilon"] == pytest.approx(own.epsilon, rel=1e-5)
    assert (late["spent"]["run_steps"], late["spent"]["run_participations"]) == (
        own.steps,
        own.participations,
    )
    # And in closed form, from what is known to have happened.
    assert late["spent"]["mu"] ** 2 == pytest.approx(2 / 4 + 1 / 16)
    assert 0 <= late["spent"]["epsilon"] - epsilon_of(2 / 4 + 1 / 16, 1e-5) < 1e-4
    assert 0 <= early["spent"]["epsilon"] - epsilon_of(1 / 4, 1e-5) < 1e-4
    assert 0 <= late["bound"]["run_epsilon"] - epsilon_of(3 / 4, 1e-5) < 1e-4
    assert (late["bound"]["run_max_epsilon"], late["bound"]["domain_max_epsilon"]) == (50.0, 90.0)
    for one in (early, late):
        check_statement(one, keys(rig))
        check_against_ledger(one, exported, report)


def test_it_names_the_domain_the_mechanism_and_what_is_not_covered(rig: Rig) -> None:
    trained(rig)
    told = statement(rig, "late")
    domain = rig.services.domains.get(TENANT, "letters")
    assert told["domain"] == {
        "name": "letters",
        "registered": True,
        "units": 3,
        "root": domain.root,
        "manifest_digest": domain.manifest_digest,
        "max_epsilon": 90.0,
    }
    assert (told["unit"], told["adjacency"]) == ("record", "zero_out_one_unit")
    assert told["mode"] == told["mechanism"]["mode"] == "bounded_participation_independent_gaussian"
    assert (told["mechanism"]["clip_norm"], told["mechanism"]["noise_multiplier"]) == (0.5, 2.0)
    not_here = {
        "earlier_weights",
        "not_registered",
        "deals_are_secret",
        "abandoned_deals",
        "declared_in_advance",
    }
    assert set(told["not_covered"]) == set(NOT_COVERED) - not_here
    assert (told["began_from"], told["warnings"]) == ([], [])
    text = " ".join(text_of(told).split())
    missing = [NOT_COVERED[code] for code in told["not_covered"] if NOT_COVERED[code] not in text]
    assert missing == []
    for part in ("letters", str(domain.root), str(rounded_up(told["spent"]["epsilon"])), told["summary"]):
        assert part in text


def test_a_bounded_run_beside_dealt_ones_rests_on_what_they_rest_on(rig: Rig) -> None:
    """Epsilon is the domain's: with a dealt run in it, whoever knows the deals is not covered."""
    register(rig, *range(24))
    rig.begin(optimizer=private())
    rig.begin(OTHER, optimizer=dealt(domain="letters"))
    rig.drain()
    rig.do(1, forward_backward(units=(1,)))
    rig.do(2, optim_step())
    rig.do(3, save("beside"))
    rig.do(1, save("dealt"), OTHER)
    rest = {"deals_are_secret", "abandoned_deals", "content_not_compared"}
    for told in (statement(rig, "beside"), statement(rig, "dealt", OTHER)):
        assert rest <= set(told["not_covered"])
        assert "declared_in_advance" not in told["not_covered"]
    rig.begin("s-1:train:2", optimizer=private(fixed_in_advance=True))
    rig.drain()
    rig.do(4, save("after"))
    assert "declared_in_advance" in statement(rig, "after")["not_covered"]


def test_steps_from_before_the_registration_are_not_said_to_be_of_its_units(rig: Rig) -> None:
    rig.begin(optimizer=private(max_participations=3, noise_multiplier=2.0))
    rig.do(1, forward_backward(units=(77,)))
    rig.do(2, optim_step())
    domains = rig.world.services.domains
    domains.create(TENANT, "letters", DomainTerms(unit="record", delta=1e-5, max_epsilon=90.0))
    domains.add_units(TENANT, "letters", 0, (1).to_bytes(8, "big") + bytes(32))
    rig.do(3, save("meanwhile"))
    told = statement(rig, "meanwhile")
    assert (told["domain"]["registered"], "not_registered" in told["not_covered"]) == (False, True)
    domains.finish(TENANT, "letters")
    rig.do(4, save("later"))
    told = statement(rig, "later")
    assert (told["domain"]["units"], told["warnings"]) == (1, ["charged_before_registration"])
    assert "registered units" not in told["summary"]
    assert "before it was registered" in text_of(told)
    exported = export(rig)
    report = verify(exported, keys(rig), processes=1)
    for name in ("meanwhile", "later"):
        check_against_ledger(statement(rig, name), exported, report)
    with pytest.raises(LedgerRefused, match="charged_before_registration"):
        check_against_ledger({**told, "warnings": []}, exported, report)


def test_what_is_told_of_epsilon_is_never_below_it() -> None:
    for value in (3.1386741, 0.1, 1e-9, 12345678.9, 99.99999999, 0.30000000000000004):
        told = float(rounded_up(value))
        assert value <= told <= value * (1 + 1.1e-5)
    assert (rounded_up(0.0), rounded_up(2.5), rounded_up(float("inf"))) == ("0", "2.5", "inf")


def test_any_change_is_noticed(rig: Rig) -> None:
    trained(rig)
    told = statement(rig, "early")
    state = content(rig, "early", CheckpointKind.TRAINING)
    check_statement(told, keys(rig), files={"state.safetensors": state})
    with pytest.raises(IntegrityError, match=r"state\.safetensors is not the file"):
        check_statement(told, keys(rig), files={"state.safetensors": state[:-1] + bytes([state[-1] ^ 1])})
    with pytest.raises(IntegrityError, match="not the file"):
        check_statement(told, keys(rig), files={"other": state})
    with pytest.raises(IntegrityError, match="not trusted"):
        check_statement(told, {})
    with pytest.raises(InvalidRequest):
        check_statement({**told, "version": 2}, keys(rig))
    changed = 0
    for path in _leaves(told):
        if path[0] in ("format", "version"):
            continue
        other = copy.deepcopy(told)
        holder = other
        for part in path[:-1]:
            holder = holder[part]
        value = holder[path[-1]]
        holder[path[-1]] = not value if isinstance(value, bool) else f"{value}0"
        with pytest.raises(IntegrityError):
            check_statement(other, keys(rig))
        changed += 1
    assert changed > 40


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for name, one in value.items() for leaf in _leaves(one, (*path, name))]
    if isinstance(value, list):
        return [leaf for index, one in enumerate(value) for leaf in _leaves(one, (*path, index))]
    return [path]


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("spent", "epsilon", 0.1),
        ("spent", "run_epsilon", 0.1),
        ("spent", "mu", 0.01),
        ("spent", "delta", 1e-6),
        ("spent", "run_participations", 1),
        ("spent", "run_steps", 1),
        ("ledger", "rows", 2),
        ("ledger", "rows", 4),
        ("ledger", "head_hash", "0" * 64),
        ("mechanism", "noise_multiplier", 20.0),
        ("domain", "name", "notes"),
        ("domain", "units", 3000),
        ("domain", "root", "0" * 64),
        ("domain", "manifest_digest", "0" * 64),
        ("domain", "max_epsilon", 1.0),
        ("domain", "registered", False),
        ("bound", "run_epsilon", 0.1),
        ("bound", "run_max_epsilon", 1.0),
        ("bound", "domain_max_epsilon", 1.0),
        ("artifact", "run_id", OTHER),
        ("artifact", "tenant", "other"),
    ],
)
def test_a_statement_that_says_less_than_the_ledger_is_refused(
    rig: Rig, where: str, name: str, value: Any
) -> None:
    """As if the service itself had signed it."""
    trained(rig)
    told, exported = statement(rig, "late"), export(rig)
    report = verify(exported, keys(rig), processes=1)
    told = {**told, where: {**told[where], name: value}}
    with pytest.raises(LedgerRefused):
        check_against_ledger(told, exported, report)


@pytest.mark.parametrize(("epsilon", "mu"), [("epsilon", "mu"), ("run_epsilon", "run_mu")])
def test_a_smaller_epsilon_is_refused_though_its_mu_fits(rig: Rig, epsilon: str, mu: str) -> None:
    trained(rig)
    told, exported = statement(rig, "late"), export(rig)
    report = verify(exported, keys(rig), processes=1)
    assert report.registered is not None
    told["spent"] |= {epsilon: epsilon_of(0.01, 1e-5) * (1 + 1e-7), mu: 0.1}
    with pytest.raises(LedgerRefused, match=f"states {epsilon} "):
        check_against_ledger(told, exported, report)


def test_what_is_attested_stands_beside_what_is_certified(rig: Rig) -> None:
    """Both numbers, told apart; one that its client made up is caught like any other."""
    register(rig, 1, 2, 3)
    rig.begin(optimizer=private(mode="attested", sampling_probability=0.01, max_participations=3))
    rig.do(1, save("before"))
    rig.do(2, forward_backward(units=(1, 2)))
    rig.do(3, optim_step())
    rig.do(4, save("late"))
    told, exported = statement(rig, "late"), export(rig)
    report = verify(exported, keys(rig), processes=1)
    attested = report.runs[0].attested_epsilon
    assert attested is not None
    assert told["attested"]["sampling_probability"] == 0.01
    assert told["attested"]["run_epsilon"] == pytest.approx(attested, rel=1e-2)
    assert told["attested"]["run_epsilon"] < told["spent"]["run_epsilon"] / 2
    assert statement(rig, "before")["attested"]["run_epsilon"] is None
    text = " ".join(text_of(told).split())
    assert f"epsilon {rounded_up(told['attested']['run_epsilon'])} for this run alone, if its client" in text
    assert "nobody checked that, and no budget counts it" in text
    for name in ("before", "late"):
        check_against_ledger(statement(rig, name), exported, report)
    less = {**told["attested"], "run_epsilon": 0.001}
    more = {**told["attested"], "sampling_probability": 0.001}
    for forged in ({**told, "attested": less}, {**told, "attested": more}):
        with pytest.raises(LedgerRefused, match="it states attested"):
            check_against_ledger(forged, exported, report)
    del told["attested"]
    with pytest.raises(LedgerRefused, match="it states attested"):
        check_against_ledger(told, exported, report)


def test_the_bound_of_every_kind_of_run_is_held_to_its_mechanism(rig: Rig) -> None:
    register(rig, *range(24))
    correlated = private(
        noise="bisr",
        bisr_bandwidth=2,
        max_steps=9,
        max_participations=3,
        min_separation=3,
        noise_multiplier=3.0,
    )
    runs = {RUN: dealt(domain="letters"), OTHER: correlated, "s-1:train:2": private(max_participations=3)}
    for run_id, optimizer in runs.items():
        rig.begin(run_id, optimizer=optimizer)
        rig.drain()
        rig.do(1, save("new"), run_id)
    exported = export(rig)
    report = verify(exported, keys(rig), processes=1)
    for run_id in runs:
        told = statement(rig, "new", run_id)
        check_against_ledger(told, exported, report)
        told["bound"]["run_epsilon"] *= 0.9
        with pytest.raises(LedgerRefused, match=r"bound\.run_epsilon"):
            check_against_ledger(told, exported, report)


def test_a_dealt_runs_statement_tells_people_how_units_are_drawn(rig: Rig) -> None:
    register(rig, *range(24))
    rig.begin(optimizer=dealt(domain="letters"))
    rig.drain()
    rig.do(1, save("new"))
    told = statement(rig, "new")
    cap = told["mechanism"]["batch_cap"]
    assert f"sampling_probability 0.166667, batch_cap {cap}" in " ".join(text_of(told).split())
    assert "attested" not in told


def test_an_export_takes_its_statement_along(rig: Rig) -> None:
    rig.begin(optimizer=private())
    rig.do(1, forward_backward(units=(1, 2)))
    rig.do(2, optim_step())
    assert rig.do(3, save("out", OpKind.SAVE_EXTERNAL)).state is OpState.COMPLETED
    files = unpack_files(content(rig, "out", CheckpointKind.EXTERNAL))
    told = json.loads(files[JSON_FILE])
    assert told == statement(rig, "out", kind=CheckpointKind.EXTERNAL)
    weights = {name: files[name] for name in ("adapter_config.json", "adapter_model.safetensors")}
    check_statement(told, keys(rig), files=weights)
    assert files[TEXT_FILE].decode() == text_of(told)
    assert told["domain"] == {"name": "letters", "registered": False}
    assert (told["unit"], "not_registered" in told["not_covered"]) == ("dp_unit_id", True)
    rig.do(4, save("sampled", OpKind.SAVE_SAMPLER))
    sampled = content(rig, "sampled", CheckpointKind.SAMPLER)
    check_statement(
        statement(rig, "sampled", kind=CheckpointKind.SAMPLER), keys(rig), files=unpack_files(sampled)
    )
    assert JSON_FILE not in unpack_files(sampled)


def test_a_run_without_privacy_says_so(rig: Rig) -> None:
    rig.begin()
    rig.do(1, forward_backward())
    rig.do(2, optim_step())
    rig.do(3, save("plain"))
    told = statement(rig, "plain")
    check_statement(told, keys(rig))
    assert told["private"] is False
    assert "spent" not in told
    assert "without differential privacy" in text_of(told)


def test_weights_that_it_began_from_are_named(rig: Rig) -> None:
    """Of a run without privacy, by declaration; and those of a run that began from them."""
    plain, first, second = "s-1:train:5", "s-1:train:6", "s-1:train:7"
    declared = private(allow_nonprivate_weights=True, max_participations=4)
    rig.begin(plain)
    rig.do(1, forward_backward(), plain)
    rig.do(2, optim_step(), plain)
    rig.do(3, save("plain"), plain)
    rig.begin(first, load(plain, "plain", with_optimizer=False, optimizer=declared), optimizer=declared)
    rig.do(1, forward_backward(units=(1,)), first)
    rig.do(2, optim_step(), first)
    rig.do(3, save("first"), first)
    rig.begin(second, optimizer=declared)
    rig.do(
        1, load(first, "first", with_optimizer=False, optimizer=declared), second
    )  # into a run that exists
    rig.do(2, save("second"), second)
    told, later = statement(rig, "first", first), statement(rig, "second", second)
    from_plain = {"path": f"tinker://{plain}/weights/plain", "private": False, "domain": None}
    from_first = {"path": f"tinker://{first}/weights/first", "private": True, "domain": "letters"}
    assert told["began_from"] == [from_plain]
    assert later["began_from"] == [from_first, from_plain]
    for one in (told, later):
        assert "earlier_weights" in one["not_covered"]
        assert one["summary"].endswith("What its weights held before is not covered.")
        assert "trained without differential privacy" in text_of(one)


def test_the_same_domains_weights_are_covered_and_another_one_s_are_not(rig: Rig) -> None:
    rig.begin(optimizer=private())
    rig.do(1, save("mine"))
    for number, (domain, covered) in enumerate((("letters", True), ("notes", False)), start=1):
        run_id, optimizer = f"s-1:train:{number}", private(domain=domain)
        rig.begin(run_id, load(RUN, "mine", with_optimizer=False, optimizer=optimizer), optimizer=optimizer)
        rig.do(1, save("next"), run_id)
        assert ("earlier_weights" not in statement(rig, "next", run_id)["not_covered"]) is covered


def test_nothing_is_saved_that_no_statement_can_be_made_of(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.begin(optimizer=private())
    rig.do(1, optim_step())

    def unreachable(*_: Any) -> Any:
        raise Unavailable("the key cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(statements, "signed", unreachable)
        rig.submit(2, save("kept"))
        rig.worker.step()
        with pytest.raises(NotFound):
            statement(rig, "kept")
    rig.restart()
    rig.drain()
    assert rig.op(2).state is OpState.COMPLETED
    check_statement(statement(rig, "kept"), keys(rig))
