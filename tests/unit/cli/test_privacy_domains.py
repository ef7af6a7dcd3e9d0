"""`privacy create, list, show, close, statement` and `verify --statement` as an operator runs them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tensafe.operations.checkpoints import STATEMENT, Checkpoint, CheckpointKind
from tensafe.privacy.artifact_statement import ArtifactFacts, private_statement, signed
from tensafe.privacy.content import unit_content_hash
from tensafe.privacy.ledger import Ledger
from tensafe.services import Services
from tensafe.wire.forward_backward_json import DatumJson
from tests.unit.cli.conftest import RUN, Tensafe
from tests.unit.privacy.support import MECHANISM, open_run

TERMS = ("--unit", "record", "--delta", 1e-3, "--max-epsilon", 8)


def datum(unit: int, *tokens: int) -> dict[str, object]:
    targets = [*tokens[1:], 0]
    inputs = {"target_tokens": targets, "weights": [1.0] * len(tokens)}
    return {"dp_unit_id": unit, "tokens": list(tokens), "loss_fn_inputs": inputs}


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return write(tmp_path / "letters.jsonl", [datum(unit, unit % 9, 5, 6) for unit in range(30)])


@pytest.fixture
def created(tensafe: Tensafe, run_id: str, letters: Path) -> dict:
    made = tensafe("privacy", "create", "letters", "--data", letters, *TERMS, "--tenant", "acme", "--json")
    assert made.code == 0, made.err
    return made.json


def test_a_data_set_is_registered_from_a_file(
    tensafe: Tensafe, created: dict, letters: Path, services: Services
) -> None:
    assert (created["tenant"], created["state"], created["units"]) == ("acme", "open", 30)
    domain = services.domains.get("acme", "letters")
    assert created["root"] == domain.root
    first = DatumJson.model_validate(datum(7, 7, 5, 6)).to_datum("data")
    expected = unit_content_hash(services.domains.content_key(domain), 7, [first])
    assert services.domains.manifest(domain).content_hash(7) == expected
    again = tensafe("privacy", "create", "letters", "--data", letters, *TERMS, "--tenant", "acme", "--json")
    assert again.json == created
    shown = tensafe("privacy", "show", "letters").out
    assert "open" in shown
    assert created["root"] in shown
    assert "no runs" in shown
    assert tensafe("privacy", "ledger", "letters").out == "no step was charged yet\n"
    assert tensafe("privacy", "ledger", "letters", "--json").json == []
    early = tensafe("privacy", "export", "letters", "-o", letters.with_name("early"))
    assert (early.code, "has no ledger to export" in early.err) == (3, True)
    assert not letters.with_name("early").exists()


def test_a_large_delta_is_warned_of_on_standard_error(tensafe: Tensafe, run_id: str, tmp_path: Path) -> None:
    file = write(tmp_path / "some.jsonl", [datum(unit, 1, 2) for unit in range(200)])
    options = ("--data", file, "--unit", "record", "--delta", 0.005, "--max-epsilon", 8, "--tenant", "acme")
    made = tensafe("privacy", "create", "some", *options, "--json")
    assert made.code == 0
    assert made.json["warnings"] == ["delta_at_least_one_over_units"]
    assert "delta is not below 1 / units" in made.err
    assert tensafe("privacy", "show", "some", "--json").json["warnings"] == made.json["warnings"]
    assert "delta_at_least" in tensafe("privacy", "list").out


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([datum(1, 2), {"tokens": [1]}], "line 2"),
        ([datum(1, 2), {**datum(2, 2), "text": "a"}], "line 2: text"),
        ([datum(1, 2), datum(2, 2), datum(1, 3)], "line 3: unit 1 has a second datum"),
        ([{**datum(1, 2), "dp_unit_id": None}], "line 1: every datum needs dp_unit_id"),
        ([datum(1, -2)], "line 1"),
        ([], "at least one unit"),
    ],
)
def test_data_that_are_none_are_refused_by_their_line(
    tensafe: Tensafe, run_id: str, tmp_path: Path, rows: list[object], words: str
) -> None:
    file = write(tmp_path / "bad.jsonl", rows)
    refused = tensafe("privacy", "create", "bad", "--data", file, *TERMS, "--tenant", "acme")
    assert refused.code != 0
    assert words in refused.err
    assert tensafe("privacy", "show", "bad").code == 3, "nothing is left, whose terms could not be changed"
    fixed, others = write(file, [datum(1, 2)]), (*TERMS[:-1], 9)
    assert tensafe("privacy", "create", "bad", "--data", fixed, *others, "--tenant", "acme").code == 0


def test_what_else_is_wrong_is_said(tensafe: Tensafe, created: dict, letters: Path, tmp_path: Path) -> None:
    create = ("privacy", "create", "letters", "--data", letters)
    assert "--tenant" in tensafe(*create, *TERMS).err  # two tenants have keys
    assert "other terms" in tensafe(*create, *TERMS[:-1], 9, "--tenant", "acme").err
    assert "--delta" in tensafe(*create, *TERMS[:3], 0.5, *TERMS[4:], "--tenant", "acme").err
    more = write(tmp_path / "more.jsonl", [datum(1, 2)])
    other = tensafe("privacy", "create", "letters", "--data", more, *TERMS, "--tenant", "acme")
    assert "open with other data (30 units, the file has 1)" in other.err
    assert "cannot be read" in tensafe(*create[:-1], tmp_path / "none", *TERMS, "--tenant", "acme").err


def test_domains_are_listed_and_closed(tensafe: Tensafe, created: dict, services: Services) -> None:
    ports = services.ports
    ledger = Ledger(ports.items, services.vault, ports.signer, ports.anchors)
    run = open_run(ledger, RUN, delta=1e-3)
    ledger.reserve(run, 1, [3])
    open_run(ledger, "run-2", tenant="other", domain="notes")
    listed = tensafe("privacy", "list", "--json").json
    assert [(one["name"], one["tenant"], one["state"], one["runs"]) for one in listed] == [
        ("letters", "acme", "open", 1),
        ("notes", "other", "unregistered", 1),
    ]
    assert len(tensafe("privacy", "list", "--tenant", "other", "--json").json) == 1
    shown = tensafe("privacy", "show", "letters", "--json").json
    assert (shown["steps"], shown["max_epsilon"], shown["runs"][0]["run_id"]) == (1, 8.0, RUN)
    assert "--yes" in tensafe("privacy", "close", "letters").err
    assert tensafe("privacy", "close", "letters", "--yes").code == 0
    assert tensafe("privacy", "show", "letters", "--json").json["state"] == "closed"
    assert tensafe("privacy", "close", "notes", "--yes").code == 3  # never registered


@pytest.fixture
def saved(created: dict, services: Services) -> Checkpoint:
    """Weights that the run has saved after one private step, as a trainer saves them."""
    ports = services.ports
    ledger = Ledger(ports.items, services.vault, ports.signer, ports.anchors)
    run = open_run(ledger, RUN, delta=1e-3)
    ledger.reserve(run, 1, [3])
    facts = ArtifactFacts(
        "art-9", f"tinker://{RUN}/weights/final", "weights", RUN, "acme", "acme/tiny", 1_700_000_000_000, {}
    )
    overview = services.domain_reader.show("acme", "letters")
    assert overview.spent is not None
    mechanism = {**MECHANISM.to_body(), "delta": 1e-3}
    told = private_statement(facts, mechanism, overview.spent, overview.registered)
    stream = services.streams.get(RUN, "acme")
    checkpoint = Checkpoint(
        run_id=RUN,
        tenant="acme",
        kind=CheckpointKind.TRAINING,
        name="final",
        base_model="acme/tiny",
        created_ms=1_700_000_000_000,
        ref=services.artifacts.write(stream.scope, "ckpt/weights/final", b"weights"),
        artifact_id="art-9",
        details={STATEMENT: signed(told, ports.signer)},
    )
    ports.items.write(services.checkpoints.saving(checkpoint, overwrite=False))
    return checkpoint


def test_a_statement_is_shown_and_held_to_the_exported_ledger(
    tensafe: Tensafe, saved: Checkpoint, tmp_path: Path
) -> None:
    text = tensafe("privacy", "statement", f"{RUN}/final").out
    assert text == tensafe("privacy", "statement", saved.path).out
    for part in ("PRIVACY STATEMENT", "letters", "Not covered:", "epsilon", "one record"):
        assert part in text
    told = tensafe("privacy", "statement", f"{RUN}/final", "--json")
    assert told.json == saved.details[STATEMENT]
    export, statement = tmp_path / "export.jsonl", tmp_path / "statement.json"
    assert tensafe("privacy", "export", "letters", "-o", export).code == 0
    key_id = tensafe("privacy", "public-key", "--json").json["key_id"]
    verify = ("privacy", "verify", export, "--key-id", key_id, "--statement", statement)
    statement.write_text(told.out)
    assert tensafe(*verify, "--json").json["statement"] == "holds"
    assert "statement        holds" in tensafe(*verify).out
    assert "statement" not in tensafe(*verify[:-2], "--json").json
    statement.write_text(told.out.replace('"epsilon": ', '"epsilon": 0'))
    assert tensafe(*verify).code != 0
    statement.write_text(json.dumps({**told.json, "summary": "nothing was spent"}))
    assert "signature" in tensafe(*verify).err
    statement.write_text("[]")
    assert "not a privacy statement" in tensafe(*verify).err


def test_what_has_no_statement_says_why(tensafe: Tensafe, checkpoint: Checkpoint) -> None:
    assert "release that made no privacy statements" in tensafe("privacy", "statement", f"{RUN}/final").err
    assert tensafe("privacy", "statement", f"{RUN}/nothing").code == 3
    assert tensafe("privacy", "statement", "nothing").code == 3
