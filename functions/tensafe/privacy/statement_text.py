"""A privacy statement for people: the same facts as its JSON, in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from tensafe.privacy.artifact_statement import CHARGED_BEFORE, NOT_COVERED, rounded_up

_ADJACENCY: Final = {
    "zero_out_one_unit": "one unit's data contribute nothing, its place stays (N is public)",
    "add_or_remove_one_unit": "one unit is there or is not",
}
_UNITS: Final = {
    "record": "one record",
    "user": "one user, with all of their data",
    "dp_unit_id": "everything that carries one dp_unit_id",
}
_WARNINGS: Final = {
    "delta_at_least_one_over_units": "delta is not below 1 / N: it allows publishing one unit's data whole.",
    CHARGED_BEFORE: "steps were charged under the domain's name before it was registered: their units were "
    "held to no manifest.",
}
_WIDTH: Final = 14
_COLUMNS: Final = 100


def text_of(statement: Mapping[str, Any]) -> str:
    """The statement as a page of text; whatever a tenant named is shown without control characters."""
    return "\n".join(_printable(line) for line in _lines(statement)) + "\n"


def _lines(statement: Mapping[str, Any]) -> Iterator[str]:
    artifact = statement["artifact"]
    saved = datetime.fromtimestamp(artifact["saved_ms"] / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    yield "PRIVACY STATEMENT"
    yield ""
    yield from textwrap.wrap(statement["summary"], _COLUMNS)
    yield ""
    yield _fact("artifact", f"{artifact['path']} ({artifact['id']}), saved {saved}")
    yield _fact("base model", artifact["base_model"])
    if statement["private"]:
        yield from _private(statement)
    for one in statement["began_from"]:
        how = f"private, domain {one['domain']}" if one["private"] else "trained without differential privacy"
        yield _fact("began from", f"{one['path']} ({how})")
    for name, digest in sorted(artifact["files"].items()):
        yield _fact("file", f"{name}, SHA-256 {digest}")
    yield _fact("signed by", statement["key_id"])
    for code in statement.get("warnings", ()):
        yield ""
        yield f"WARNING: {_WARNINGS.get(code, code)}"
    if statement["private"]:
        yield ""
        yield "Not covered:"
        for code in statement["not_covered"]:
            yield from textwrap.wrap(f"- {NOT_COVERED.get(code, code)}", _COLUMNS, subsequent_indent="  ")


def _private(statement: Mapping[str, Any]) -> Iterator[str]:
    domain, spent, bound = statement["domain"], statement["spent"], statement["bound"]
    yield _fact("domain", domain["name"] + ("" if domain["registered"] else " (not registered)"))
    if domain["registered"]:
        yield _fact("units", f"{domain['units']} (N), Merkle root {domain['root']}")
        yield _fact("manifest", f"SHA-256 {domain['manifest_digest']}")
    yield _fact("unit", _UNITS.get(statement["unit"], statement["unit"]))
    yield _fact("neighbours", _ADJACENCY.get(statement["adjacency"], statement["adjacency"]))
    yield _fact("mode", statement["mode"])
    shown = (
        "clip_norm",
        "noise_multiplier",
        "batch_size",
        "max_participations",
        "max_steps",
        "min_separation",
        "bisr_bandwidth",
        "sampling_probability",
        "batch_cap",
    )
    mechanism = statement["mechanism"]
    given = {name: mechanism.get(name) for name in shown}
    if given["min_separation"] == 1:  # none
        del given["min_separation"]
    named = (f"{name} {value:g}" for name, value in given.items() if value is not None)
    yield from _folded("mechanism", ", ".join(named))
    yield _fact(
        "spent", f"epsilon {rounded_up(spent['epsilon'])} at delta {spent['delta']!r}{_mu(spent['mu'])}"
    )
    alone = f"{rounded_up(spent['run_epsilon'])} alone, in {spent['run_steps']} steps{_mu(spent['run_mu'])}"
    yield _fact("", f"of it this run: {alone}")
    limits = [f"{rounded_up(bound['run_epsilon'])} for this run alone, whatever it may still do"]
    for name, whose in (("run_max_epsilon", "the run's"), ("domain_max_epsilon", "the domain's")):
        if bound[name] is not None:
            limits.append(f"{bound[name]:g} for the domain ({whose} max_epsilon)")
    yield _fact("bound", "epsilon " + ", ".join(limits))
    if "attested" in statement:
        yield from _folded("attested", _attested(statement["attested"]))
    yield _fact("which counts", "spent, if the schedule (steps, runs, noise) was fixed in advance;")
    yield _fact("", "the bound, if what was seen decided when to stop or what to train next")
    yield _fact("ledger", f"row {statement['ledger']['rows']}, hash {statement['ledger']['head_hash']}")


def _attested(attested: Mapping[str, Any]) -> str:
    epsilon, q = attested["run_epsilon"], attested["sampling_probability"]
    number = "no useful epsilon" if epsilon is None else f"epsilon {rounded_up(epsilon)}"
    return (
        f"{number} for this run alone, if its client drew every unit independently with probability {q:g} in "
        "every step, as it says: nobody checked that, and no budget counts it"
    )


def _folded(name: str, value: str) -> Iterator[str]:
    """A fact over as many lines as it takes."""
    first, *rest = textwrap.wrap(value, _COLUMNS - _WIDTH)
    yield _fact(name, first)
    for line in rest:
        yield _fact("", line)


def _mu(mu: float | None) -> str:
    return "" if mu is None else f" (mu {mu:.6g})"


def _fact(name: str, value: str) -> str:
    return f"{name:<{_WIDTH}}{value}"


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
