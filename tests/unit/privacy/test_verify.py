"""An exported ledger verifies as it is, and in no other form: what is wrong is named."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensafe.contracts.errors import IntegrityError, InvalidRequest, NotFound
from tensafe.privacy import rules
from tensafe.privacy.records import Row, canonical
from tensafe.privacy.signature_checks import SignatureChecks, first_wrong
from tensafe.privacy.verify import keys_of, verify
from tensafe.privacy.verify_forms import LedgerRefused
from tensafe.storage.ports import Delete, Put
from tests.fakes import P256Signer, memory_signer
from tests.unit.privacy.exports import Exported
from tests.unit.privacy.support import exact_epsilon, open_run

EXPORTED = Exported()
LINES = EXPORTED.lines
ROWS = len(LINES) - 2
STARTS = [sum(map(len, LINES[:number])) for number in range(len(LINES) + 1)]


def refusal(lines: list[bytes], exported: Exported = EXPORTED) -> LedgerRefused:
    with pytest.raises(LedgerRefused) as caught:
        exported.verify(lines)
    return caught.value


def place(line: int) -> str:
    """What an error in this line has to name."""
    return "header" if line == 0 else "trailer" if line == ROWS + 1 else f"row {line}"


def line_of(at: int) -> int:
    """The line that holds this byte."""
    return max(number for number in range(len(LINES)) if STARTS[number] <= at)


def names(error: LedgerRefused, line: int) -> bool:
    return error.where == place(line) or error.where.startswith(f"{place(line)} (")


@pytest.mark.parametrize("signer", [memory_signer, P256Signer], ids=["ed25519", "p256"])
def test_an_export_verifies_with_the_public_key_alone(signer: Callable[[], Any]) -> None:
    exported = Exported(signer())
    report = exported.verify()
    shown = exported.ledger.show("acme", "letters")
    assert (report.rows, report.head_hash, report.delta) == (8, shown.head_hash, shown.delta)
    assert report.epsilon == pytest.approx(shown.epsilon, rel=2e-6)
    assert report.epsilon <= shown.epsilon
    assert {run.run_id: (run.steps, run.participations, run.units) for run in report.runs} == {
        "one": (5, 3, 5),
        "three": (0, 0, 0),
        "two": (3, 1, 5),
    }
    assert report.signed_by == (exported.signer.key_id,)


def test_epsilon_is_recomputed_by_the_closed_form() -> None:
    """Against 40-digit arithmetic; the ledger's own number is not used."""
    report = EXPORTED.verify()
    assert report.epsilon == pytest.approx(exact_epsilon(3 / 1.0**2 + 1 / 2.5**2, 1e-5), rel=1e-9)


def test_an_empty_ledger_verifies() -> None:
    exported = Exported()
    open_run(exported.ledger, "other", domain="mails")
    lines = list(exported.exporter().lines("acme", "mails", at_ms=1))
    report = exported.verify(lines)
    assert (report.rows, report.epsilon) == (0, 0.0)
    assert refusal(lines[:1], exported).where == "trailer"


# Tampering by somebody without the key


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, STARTS[-1] - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_caught_and_its_row_is_named(at: int, bit: int) -> None:
    data = bytearray(b"".join(LINES))
    data[at] ^= 1 << bit
    with pytest.raises(LedgerRefused) as caught:
        EXPORTED.verify([bytes(data)])
    assert names(caught.value, line_of(at)), (at, bit, caught.value)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, STARTS[-1] - 1), value=st.integers(0, 255), insert=st.booleans())
def test_a_byte_that_is_put_in_or_taken_out_is_caught(at: int, value: int, insert: bool) -> None:
    data = b"".join(LINES)
    changed = data[:at] + bytes([value]) + data[at:] if insert else data[:at] + data[at + 1 :]
    line = line_of(at)
    if insert and value == data[at] == 10:  # an empty line behind this one
        line = min(line + 1, ROWS + 1)
    assert names(refusal([changed]), line), (at, line)


def test_every_byte_of_a_row_counts() -> None:
    """Not a sample: each byte of one whole row, and of the trailer."""
    for line in (4, ROWS + 1):
        raw = LINES[line]
        for at in range(len(raw)):
            changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            error = refusal([*LINES[:line], changed, *LINES[line + 1 :]])
            assert names(error, line), (line, at, error)


@pytest.mark.parametrize("row", range(1, ROWS + 1))
def test_a_dropped_row_is_named(row: int) -> None:
    assert names(refusal([*LINES[:row], *LINES[row + 1 :]]), row)


@pytest.mark.parametrize("row", range(1, ROWS + 1))
def test_a_repeated_row_is_named(row: int) -> None:
    assert refusal([*LINES[: row + 1], LINES[row], *LINES[row + 1 :]]).where == f"row {row + 1}"


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(1, ROWS + 1)))
def test_reordered_rows_are_named(order: list[int]) -> None:
    moved = [number for number, row in enumerate(order, start=1) if number != row]
    lines = [LINES[0], *(LINES[row] for row in order), LINES[-1]]
    if not moved:
        EXPORTED.verify(lines)
    else:
        assert names(refusal(lines), moved[0])


@pytest.mark.parametrize("kept", range(ROWS + 2))
def test_a_cut_between_lines_is_named(kept: int) -> None:
    assert names(refusal(LINES[:kept]), kept)
    if 0 < kept < ROWS + 1:  # and with the trailer put back behind the cut
        assert names(refusal([*LINES[:kept], LINES[-1]]), kept)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, STARTS[-1] - 1))
def test_a_cut_anywhere_is_caught_and_the_first_row_that_is_not_whole_is_named(size: int) -> None:
    assert names(refusal([b"".join(LINES)[:size]]), line_of(size))


def test_something_behind_the_trailer_is_refused() -> None:
    for more in (b"\n", b" ", LINES[-1], LINES[1]):
        assert refusal([*LINES, more]).where == "trailer"


def test_a_row_of_another_ledger_is_refused_though_the_same_key_signed_it() -> None:
    other = Exported(EXPORTED.signer)
    other.ledger.reserve(open_run(other.ledger, "four"), 0, {9})
    lines = other.export()
    assert refusal([*LINES[:-1], lines[-2], LINES[-1]]).where == f"row {ROWS + 1}"
    assert names(refusal([*LINES[:3], lines[-2], *LINES[4:]]), 3)
    assert refusal([*LINES[:-1], lines[-1]]).where == "trailer"
    assert refusal([lines[0], *LINES[1:]]).where == f"row {ROWS + 1}"


def test_a_trailer_and_a_header_of_two_exports_of_one_ledger_do_not_mix() -> None:
    later = list(EXPORTED.exporter().lines("acme", "letters", at_ms=1_800_000_000_000))
    assert later[1:-1] == LINES[1:-1]
    assert refusal([*LINES[:-1], later[-1]]).where == "trailer"
    assert refusal([later[0], *LINES[1:]]).where == "trailer"


def test_a_signature_by_another_key_is_refused() -> None:
    thief = Exported()
    assert refusal(thief.lines).where == "header"
    assert "not the one to be trusted" in str(refusal(thief.lines))
    for line in (0, 2, ROWS + 1):  # under the right key's id
        fields = json.loads(LINES[line])
        fields["signature"] = json.loads(thief.lines[line])["signature"]
        lines = [*LINES[:line], (canonical(fields) + "\n").encode(), *LINES[line + 1 :]]
        error = refusal(lines)
        assert names(error, line)
        assert "signature" in error.problem
    fields = json.loads(LINES[2])
    fields |= {"key_id": thief.signer.key_id, "signature": json.loads(thief.lines[2])["signature"]}
    assert names(refusal([*LINES[:2], (canonical(fields) + "\n").encode(), *LINES[3:]]), 2)


def test_the_tags_of_a_row_are_signed_with_it() -> None:
    """Without this a thief could hand the counts of one unit to another."""
    fields = json.loads(LINES[1])
    tag = "0" * 32
    fields["tags"] = tag + fields["tags"][32:]
    error = refusal([LINES[0], (canonical(fields) + "\n").encode(), *LINES[2:]])
    assert names(error, 1)
    assert "signature" in error.problem


# A ledger that was charged wrongly: everything signed and chained as it should be

FORGERIES: dict[str, tuple[int | str, dict[str, Any], str]] = {
    "epsilon understated": (3, {"change": lambda row: row.update(epsilon=row["epsilon"] * 0.999)}, "epsilon"),
    "epsilon overstated": (3, {"change": lambda row: row.update(epsilon=row["epsilon"] * 1.001)}, "epsilon"),
    "epsilon forgotten": (4, {"change": lambda row: row.update(epsilon=0.0)}, "epsilon"),
    "run's epsilon understated": (
        6,
        {"change": lambda row: row.update(run_epsilon=row["run_epsilon"] - 0.01)},
        "run_epsilon",
    ),
    "count understated": (3, {"change": lambda row: row.update(participations=1)}, "took part"),
    "units understated": (3, {"change": lambda row: row.update(units=1)}, "units"),
    "units left out": (
        3,
        {"tags": lambda _: [], "change": lambda row: row.update(units=0)},
        "took part 2 times at most; it is 1",
    ),
    "a unit twice": (
        2,
        {"tags": lambda tags: tags * 2, "change": lambda row: row.update(units=2)},
        "each there once",
    ),
    "units not in order": (1, {"tags": lambda tags: tags[::-1]}, "each there once"),
    "half a tag": (4, {"tags": lambda _: ["0" * 16], "change": lambda row: row.update(units=1)}, "units"),
    "more noise than the run's": (3, {"change": lambda row: row.update(noise_multiplier=9.0)}, "noise_mult"),
    "another clip norm": (3, {"change": lambda row: row.update(clip_norm=9.0)}, "clip_norm"),
    "another batch size": (3, {"change": lambda row: row.update(batch_size=9)}, "batch_size"),
    "another delta": (3, {"change": lambda row: row.update(delta=1e-4)}, "delta"),
    "another noise secret": (3, {"change": lambda row: row.update(noise_key_id="x")}, "noise_key_id"),
    "another mode": (3, {"change": lambda row: row.update(mode="poisson")}, "mode"),
    "another accountant": (3, {"change": lambda row: row.update(accountant="mine")}, "accountant"),
    "another version": (3, {"change": lambda row: row.update(version=5)}, "tag"),
    "an unknown field": (3, {"change": lambda row: row.update(refund=True)}, "refund"),
    "an unknown run": (3, {"change": lambda row: row.update(run_id="ghost")}, "does not know its run"),
    "a step twice": (3, {"change": lambda row: row.update(step=0)}, "go back"),
    "a number left out": (3, {"change": lambda row: row.update(seq=4)}, "has row 4 in its place"),
    "over max_steps": (
        5,
        {"header": lambda head: head["runs"]["one"]["mechanism"].update(max_steps=2)},
        "max_steps=2",
    ),
    "over max_epsilon": (
        3,
        {"header": lambda head: head["runs"]["one"]["mechanism"].update(max_epsilon=5.0)},
        "max_epsilon 5",
    ),
    "less than a true epsilon fits": (
        1,
        {"header": lambda head: head["runs"]["one"]["mechanism"].update(max_epsilon=1.0)},
        "max_epsilon 1",
    ),
    "two runs share a secret": (
        "header",
        {"header": lambda head: head["runs"]["two"].update(noise_key_id=head["runs"]["one"]["noise_key_id"])},
        "another run's secret",
    ),
    "a run of another domain": (
        "header",
        {"header": lambda head: head["runs"]["two"]["mechanism"].update(domain="mails")},
        "another domain",
    ),
    "another format": ("header", {"header": lambda head: head.update(version=3)}, "version"),
    "another tenant": (1, {"header": lambda head: head.update(tenant="other")}, "does not follow"),
    "another delta in the header": ("header", {"header": lambda head: head.update(delta=1e-6)}, "delta"),
    "another head": (ROWS, {"header": lambda head: head["head"].update(hash="0" * 64)}, "not the head"),
}


def test_a_forgery_that_changes_nothing_verifies() -> None:
    """So that each of the forgeries is refused for what it changes, not for how it was made."""
    assert EXPORTED.verify(EXPORTED.forged()) == EXPORTED.verify()


@pytest.mark.parametrize("forgery", list(FORGERIES))
def test_a_ledger_that_does_not_add_up_is_refused(forgery: str) -> None:
    where, changes, problem = FORGERIES[forgery]
    row = where if isinstance(where, int) and set(changes) & {"change", "tags"} else None
    error = refusal(EXPORTED.forged(row=row, **changes))
    assert names(error, 0 if where == "header" else int(where)), error
    assert problem in error.problem


def test_a_unit_beyond_its_participations_is_refused() -> None:
    """`one` allows three; row 5 is given to the unit of rows 1 and 3, which row 6 lets in again."""
    first = json.loads(LINES[1])["tags"]
    most = next(
        tag
        for tag in (first[at : at + 32] for at in range(0, len(first), 32))
        if sum(tag in json.loads(line)["tags"] for line in (LINES[1], LINES[3], LINES[6])) == 3
    )

    def change(row: dict[str, Any]) -> None:
        row.update(units=1, participations=3)

    error = refusal(EXPORTED.forged(row=5, tags=lambda _: [most], change=change))
    assert names(error, 6), error
    assert "takes part 4 times; at most 3" in error.problem


def test_bounded_participation_is_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: a service that lets a unit in once too often, signs and charges it."""
    exported = Exported()
    monkeypatch.setattr("tensafe.privacy.rules._refuse_spent_units", lambda *_: None)
    run = open_run(exported.ledger, "careless", max_participations=1)
    exported.ledger.reserve(run, 0, {1})
    exported.ledger.reserve(run, 1, {1})
    error = refusal(exported.export(), exported)
    assert error.where.startswith(f"row {ROWS + 2} (run careless, step 1")
    assert "at most 1" in error.problem


def test_a_service_that_charges_too_little_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: mu where mu squared is due, so that rows state an epsilon that is too small."""
    charged = rules.next_row

    def too_little(*arguments: Any) -> Row:
        row = charged(*arguments)
        return replace(row, epsilon=row.epsilon**0.5)

    monkeypatch.setattr(rules, "next_row", too_little)
    exported = Exported()
    error = refusal(exported.lines, exported)
    assert names(error, 1)
    assert "it states epsilon" in error.problem


def test_a_service_that_forgets_its_forks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: epsilon of the run where the domain's is due."""
    monkeypatch.setattr(
        "tensafe.privacy.records.Head.with_run",
        lambda self, run_id, sigma, count: type(self)(
            self.delta, self.seq, self.hash, {run_id: (sigma, count)}, self.item_version
        ),
    )
    exported = Exported()
    error = refusal(exported.lines, exported)
    assert error.where.startswith("row ") or error.where == "header"


# Input that is no export


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{}\n",
        b"null\n",
        b"[]\n",
        b"\xff\xfe",
        b"{" * 100_000,
        b"[" * 3_000_000,
        b'{"type":"header"}\n',
        b"x" * (5 * 1024 * 1024),
        b'{"delta":NaN}\n',
    ],
    ids=range(11),
)
def test_what_is_no_export_is_refused_in_one_sentence(data: bytes) -> None:
    error = refusal([data])
    assert error.where in ("header", "line 1")
    assert len(str(error)) < 400


def test_a_key_id_stands_for_the_key_that_the_file_brings() -> None:
    data = io.BytesIO(b"".join(LINES))
    trusted = keys_of(data, frozenset({EXPORTED.signer.key_id}))
    data.seek(0)
    assert verify(data, trusted, processes=1).rows == ROWS
    with pytest.raises(InvalidRequest, match="--public-key"):
        keys_of(io.BytesIO(b"".join(LINES)), frozenset({Exported().signer.key_id}))


# Export


def test_an_export_shows_no_unit_id_and_can_be_repeated() -> None:
    canary = 0x5EC2E7C0FFEE1234
    exported = Exported()
    exported.ledger.reserve(open_run(exported.ledger, "four"), 0, {canary})
    lines = exported.export()
    assert lines == exported.export()
    for form in (
        str(canary),
        f"{canary:x}",
        canary.to_bytes(8, "big").hex(),
        canary.to_bytes(8, "little").hex(),
    ):
        assert form.encode() not in b"".join(lines)


def test_rows_that_are_charged_meanwhile_are_left_out() -> None:
    exported = Exported()
    lines = exported.exporter().lines("acme", "letters", at_ms=1)
    taken = [next(lines)]
    run = open_run(exported.ledger, "late")
    exported.ledger.reserve(run, 0, {1})
    assert exported.verify([*taken, *lines]).rows == ROWS


def test_a_damaged_store_is_not_exported() -> None:
    for act, problem in (("delete", "row 3 .*missing"), ("unsigned", "row 3 is not signed")):
        exported = Exported()
        (item,) = [
            item
            for item in exported.items.query("domain/acme/letters", first="row/", last="row/~")
            if json.loads(str(item.body["row"]))["seq"] == 3
        ]
        if act == "delete":
            exported.items.write([Delete(item.key, None)])
        else:
            body = {name: value for name, value in item.body.items() if name != "signature"}
            exported.items.write([Put(item.key, body, item.version, item.sealed)])
        with pytest.raises(IntegrityError, match=problem):
            exported.export()
    with pytest.raises(NotFound):
        list(exported.exporter().lines("acme", "nothing", at_ms=1))


# Many signatures


@pytest.mark.parametrize("wrong", [None, 0, 511, 512, 1100, 1499])
def test_the_first_wrong_signature_is_found_on_every_core(wrong: int | None) -> None:
    signer = memory_signer()
    pems = {signer.key_id: signer.public_key}
    digest = bytes(32)
    right = signer.sign(digest)
    with SignatureChecks(pems, processes=2) as checks:
        for index in range(1500):
            bad = wrong is not None and index >= wrong and (index - wrong) % 100 == 0
            checks.add(signer.key_id, digest, bytes(64) if bad else right)
        assert checks.finish() == wrong
    assert first_wrong(pems, [(signer.key_id, digest, right)] * 3) is None
