"""Holds a privacy statement to an exported ledger that `verify` has replayed: same row, same numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final

import numpy as np

from tensafe.privacy.artifact_statement import CHARGED_BEFORE
from tensafe.privacy.closed_form import is_epsilon
from tensafe.privacy.dealt_mechanism import DEALT_VERSION
from tensafe.privacy.records import genesis
from tensafe.privacy.verify_forms import LedgerRefused, RegisteredForm
from tensafe.privacy.verify_replay import Report
from tensafe.vault.scope import domain_scope

_WHERE: Final = "statement"
_TOLERANCE: Final = 1e-6
"""Relative; as the replay's for the same root found by another release."""


def check_against_ledger(statement: Mapping[str, Any], ledger: BinaryIO, report: Report) -> None:
    """Raise LedgerRefused unless the statement says what the ledger's rows say up to the row that it names.

    `ledger` is an export, and `report` what `verify` found in it. The statement's signature is checked apart
    (`artifact_statement.check_statement`).
    """
    if not statement["private"]:
        raise LedgerRefused(_WHERE, "it is that of an artifact without differential privacy")
    artifact, spent = statement["artifact"], statement["spent"]
    _same("tenant", artifact["tenant"], report.tenant)
    _same("domain", statement["domain"]["name"], report.domain)
    _same("delta", spent["delta"], report.delta)
    _same("run_max_epsilon", statement["bound"]["run_max_epsilon"], statement["mechanism"]["max_epsilon"])
    named = int(statement["ledger"]["rows"])
    _check_registered(statement, report.registered, named)
    if named > report.rows:
        raise LedgerRefused(_WHERE, f"it names row {named}, and the ledger was exported at row {report.rows}")
    scope = domain_scope(report.tenant, report.domain)
    at: dict[str, Any] = {"hash": genesis(scope, report.delta), "epsilon": 0.0}
    own: dict[str, Any] = {"run_epsilon": 0.0, "participations": 0}
    steps, frozen = 0, None
    for line in _lines(ledger):
        if line["type"] == "header":
            frozen = line["runs"].get(artifact["run_id"], {}).get("mechanism")
        if line["type"] != "row":
            continue
        row = json.loads(line["row"])
        if row["seq"] > named:
            break
        at = {**row, "hash": line["hash"]}
        if row["run_id"] == artifact["run_id"]:
            own, steps = row, steps + (row.get("kind") != "opening")
    _same("mechanism", statement["mechanism"], frozen)
    _same("head_hash", statement["ledger"]["head_hash"], at["hash"])
    _close("epsilon", spent["epsilon"], at["epsilon"])
    _close("run_epsilon", spent["run_epsilon"], own["run_epsilon"])
    _same("run_participations", spent["run_participations"], own.get("participations"))
    _same("run_steps", spent["run_steps"], steps)
    _same("attested", statement.get("attested"), _attested(statement["mechanism"], own))
    _check_bound(statement, report.delta)
    for name, mu in (("epsilon", "mu"), ("run_epsilon", "run_mu")):
        if spent[mu] is not None:
            _is_of(name, spent[name], spent[mu], report.delta)


def _attested(mechanism: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run's last row says of an attested run."""
    q = mechanism.get("attested_probability")
    return None if q is None else {"sampling_probability": q, "run_epsilon": row.get("attested_epsilon")}


def _check_bound(statement: Mapping[str, Any], delta: float) -> None:
    """What the run alone can still reach follows from its mechanism; of a dealt run all is charged."""
    mechanism, stated = statement["mechanism"], statement["bound"]["run_epsilon"]
    if mechanism["version"] == DEALT_VERSION:
        _close("bound.run_epsilon", stated, statement["spent"]["run_epsilon"])
        return
    whole, sigma = mechanism.get("sensitivity"), mechanism["noise_multiplier"]
    mu = math.sqrt(mechanism["max_participations"]) / sigma if whole is None else whole / sigma
    _is_of("bound.run_epsilon", stated, mu, delta)


def _check_registered(statement: Mapping[str, Any], registered: RegisteredForm | None, row: int) -> None:
    """N, root, terms and warnings; a statement may be of before the domain was registered."""
    domain, limit = statement["domain"], statement["bound"]["domain_max_epsilon"]
    if not domain["registered"]:
        if registered is not None and row > registered.earlier_rows:
            raise LedgerRefused(
                _WHERE, "it is of an unregistered domain; the ledger's was registered by then"
            )
        _same("unit", statement["unit"], "dp_unit_id")
        _same("domain_max_epsilon", limit, None)
        return
    if registered is None:
        raise LedgerRefused(
            _WHERE,
            "it is of a registered domain, and the export does not say how it is registered: export it again "
            "with a release that writes version 2",
        )
    terms = registered.terms
    for name in ("units", "root", "manifest_digest"):
        _same(name, domain[name], getattr(registered, name))
    for name, stated, found in (
        ("max_epsilon", domain["max_epsilon"], terms.max_epsilon),
        ("domain_max_epsilon", limit, terms.max_epsilon),
        ("unit", statement["unit"], terms.unit),
        ("adjacency", statement["adjacency"], terms.adjacency),
    ):
        _same(name, stated, found)
    early = CHARGED_BEFORE in statement["warnings"]
    _same(CHARGED_BEFORE, early, registered.earlier_rows > 0)


def _lines(ledger: BinaryIO) -> Iterator[dict[str, Any]]:
    ledger.seek(0)
    return (json.loads(line) for line in ledger)


def _same(name: str, stated: object, found: object) -> None:
    if stated != found:
        raise LedgerRefused(_WHERE, f"it states {name} {stated!r:.80}, the ledger has {found!r:.80}")


def _close(name: str, stated: float, found: float) -> None:
    if not math.isclose(stated, found, rel_tol=_TOLERANCE, abs_tol=1e-9):
        raise LedgerRefused(_WHERE, f"it states {name} {stated:.9g}, the ledger's rows give {found:.9g}")


def _is_of(name: str, stated: float, mu: float, delta: float) -> None:
    if not bool(is_epsilon(np.array([stated]), np.array([mu**2]), delta)[0]):
        raise LedgerRefused(_WHERE, f"its {name} {stated:.9g} is not that of mu {mu:.9g}")
