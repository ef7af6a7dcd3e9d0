"""What is said of an artifact's privacy when it is saved, signed by the service: the statement.

A statement is JSON and never changes. It names the artifact's files by SHA-256 and the ledger by the number
and hash of its newest row, so that it can be held to both offline (`check_statement`, `statement_check`).
`not_covered` lists codes; `NOT_COVERED` says what they mean, and docs/privacy.md why.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Final, cast

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.privacy.accountant import epsilon
from tensafe.privacy.domain_records import Domain
from tensafe.privacy.mechanism import ADJACENCY, BISR_MODE, MODE
from tensafe.privacy.records import canonical
from tensafe.privacy.statements import DomainStatement, RunStatement
from tensafe.storage.ports import JsonValue
from tensafe.storage.signing import PublicKey, Signer

FORMAT: Final = "tensafe-privacy-statement"
FORMAT_VERSION: Final = 1
JSON_FILE: Final = "privacy_statement.json"
TEXT_FILE: Final = "privacy_statement.txt"
_LABEL: Final = b"tensafe/privacy/artifact-statement/v1\0"

CHARGED_BEFORE: Final = "charged_before_registration"
"""Recorded in statements: steps of the domain that nothing held to its manifest."""

Statement = dict[str, JsonValue]

NOT_COVERED: Final[Mapping[str, str]] = {
    "deals_are_secret": "Whoever knows which units were dealt, from the client's logs or the opened seed: "
    "against them sampling amplifies nothing.",
    "abandoned_deals": "Giving up deals, or choosing what a step does, because of who is in them; how many "
    "were given up is on record.",
    "declared_in_advance": "That runs which came after a release were chosen without looking at it: their "
    "owner declared so (fixed_in_advance), and nobody can check it.",
    "non_dp_outputs": "Losses, logprobs, gradient norms, counts and timing that the data's owner was told "
    "while training. Choices made by looking at them are outside the guarantee.",
    "hyper_parameter_search": "Choices made outside this domain's private runs. Every private run of the "
    "domain is charged, also those that were thrown away; runs elsewhere are not.",
    "base_model": "What the base model learned before: its pre-training may have seen the same data.",
    "outside_the_domain": "The same data in non-private runs, under another domain's name or at another "
    "tenant.",
    "units_are_believed": "Whether two unit ids are one person, or one record holds another's data.",
    "content_not_compared": "Whether the data that arrived are those whose hashes were registered: in this "
    "mode only the ids are held to the manifest.",
    "not_registered": "How many units there are, and which: the domain was used by its name alone.",
    "earlier_weights": "What the weights held that training began from; the statement says which they were.",
    "numeric_implementation": "The analysis is that of the continuous Gaussian, with grid rounding; it is no "
    "formal proof of the implementation.",
    "operator": "Whoever can read the service's memory.",
}


@dataclass(frozen=True, slots=True)
class ArtifactFacts:
    """The artifact that a statement is about; `files` maps each file to the SHA-256 of its clear bytes."""

    artifact_id: str
    path: str
    kind: str
    run_id: str
    tenant: str
    base_model: str
    saved_ms: int
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ancestor:
    """Weights that a run began from, nearest first; `domain` is None for a run without privacy."""

    path: str
    private: bool
    domain: str | None = None


def private_statement(
    artifact: ArtifactFacts,
    mechanism: Mapping[str, JsonValue],
    spent: DomainStatement,
    domain: Domain | None,
    *,
    began_from: Sequence[Ancestor] = (),
) -> Statement:
    """The statement of a private run's artifact.

    `mechanism` is the run's as it is stored, `spent` the ledger as it stood after the run's last step.
    Neighbouring relation: `adjacency`.
    """
    run = _run_of(spent, artifact.run_id)
    if domain is not None and domain.manifest_digest is None:
        domain = None  # begun to be registered, and holding nothing to any manifest yet
    foreign = [one for one in began_from if one.domain != spent.domain]
    # Epsilon is that of all the domain's runs, so it rests on what each of them rests on.
    bounded = [one.mode in (MODE, BISR_MODE) for one in spent.runs]
    return {
        **_head(artifact, began_from),
        "private": True,
        "summary": _summary(spent, domain, foreign=bool(foreign)),
        "domain": _domain(spent, domain),
        "unit": "dp_unit_id" if domain is None else domain.terms.unit,
        "adjacency": ADJACENCY if domain is None else domain.terms.adjacency,
        "mode": run.mode,
        "mechanism": {**mechanism},
        "spent": {
            "delta": spent.delta,
            "epsilon": spent.epsilon,
            "mu": _mu(spent.runs),
            "run_epsilon": run.epsilon,
            "run_mu": _mu([run]),
            "run_steps": run.steps,
            "run_participations": run.participations,
            "runs": len(spent.runs),
        },
        "bound": {
            "delta": spent.delta,
            "run_epsilon": _bound(run, spent.delta),
            "run_max_epsilon": run.max_epsilon,
            "domain_max_epsilon": None if domain is None else domain.terms.max_epsilon,
        },
        **_attested(run),
        "reading": "spent_if_schedule_was_fixed_else_bound",
        "ledger": {"rows": spent.steps, "head_hash": spent.head_hash},
        "warnings": [] if domain is None else _warnings(domain),
        "not_covered": [
            *([] if all(bounded) else ["deals_are_secret", "abandoned_deals"]),
            *(["declared_in_advance"] if any(one.fixed_in_advance for one in spent.runs) else []),
            "non_dp_outputs",
            "hyper_parameter_search",
            "base_model",
            "outside_the_domain",
            *(["earlier_weights"] if foreign else []),
            "units_are_believed",
            *(["not_registered"] if domain is None else []),
            *(["content_not_compared"] if domain is not None and any(bounded) else []),
            "numeric_implementation",
            "operator",
        ],
    }


def plain_statement(artifact: ArtifactFacts, *, began_from: Sequence[Ancestor] = ()) -> Statement:
    """The statement of an artifact that was trained without differential privacy: it promises nothing."""
    return {
        **_head(artifact, began_from),
        "private": False,
        "summary": "Trained without differential privacy: nothing bounds what this artifact tells about the "
        "data that it was trained on.",
    }


def signed(statement: Mapping[str, JsonValue], signer: Signer) -> Statement:
    """The statement with the service's signature. Raises Unavailable if the key cannot be reached."""
    named: Statement = {**statement, "key_id": signer.key_id}
    return {**named, "signature": signer.sign(_digest(named)).hex()}


def check_statement(
    statement: Mapping[str, JsonValue],
    trusted: Mapping[str, PublicKey],
    *,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Raise IntegrityError unless a trusted key signed it and `files` are the artifact's, byte for byte.

    `files` may be some of the artifact's files in clear. Raises InvalidRequest for what is no statement.
    """
    if (statement.get("format"), statement.get("version")) != (FORMAT, FORMAT_VERSION):
        raise InvalidRequest("not a privacy statement that this release reads")
    unsigned = {name: value for name, value in statement.items() if name != "signature"}
    key = trusted.get(str(statement.get("key_id")))
    if key is None:
        raise IntegrityError(
            f"the statement is signed with key {statement.get('key_id')}, which is not trusted"
        )
    try:
        key.verify(_digest(unsigned), bytes.fromhex(str(statement.get("signature"))))
        stated = cast(Mapping[str, str], cast(Mapping[str, JsonValue], statement["artifact"])["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError("the statement is damaged") from error
    for name, content in (files or {}).items():
        if stated.get(name) != hashlib.sha256(content).hexdigest():
            raise IntegrityError(f"{name[:200]} is not the file that the statement is about")


def rounded_up(value: float) -> str:
    """Six significant digits, never below the value: what is told of epsilon must not promise more."""
    if not math.isfinite(value) or value == 0.0:
        return f"{value:g}"
    exact = Decimal(value)
    return f"{exact.quantize(Decimal(1).scaleb(exact.adjusted() - 5), ROUND_CEILING).normalize():f}"


def _digest(statement: Mapping[str, JsonValue]) -> bytes:
    return hashlib.sha256(_LABEL + canonical(statement).encode()).digest()


def _head(artifact: ArtifactFacts, began_from: Sequence[Ancestor]) -> Statement:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "artifact": {
            "id": artifact.artifact_id,
            "path": artifact.path,
            "kind": artifact.kind,
            "run_id": artifact.run_id,
            "tenant": artifact.tenant,
            "base_model": artifact.base_model,
            "saved_ms": artifact.saved_ms,
            "files": {**artifact.files},
        },
        "began_from": [
            {"path": one.path, "private": one.private, "domain": one.domain} for one in began_from
        ],
    }


def _domain(spent: DomainStatement, domain: Domain | None) -> Statement:
    told: Statement = {"name": spent.domain, "registered": domain is not None}
    if domain is None:
        return told
    return told | {
        "units": domain.units,
        "root": domain.root,
        "manifest_digest": domain.manifest_digest,
        "max_epsilon": domain.terms.max_epsilon,
    }


def _warnings(domain: Domain) -> list[JsonValue]:
    return [*domain.warnings, *([CHARGED_BEFORE] if domain.earlier_rows else [])]


def _summary(spent: DomainStatement, domain: Domain | None, *, foreign: bool) -> str:
    of = "" if domain is None or domain.earlier_rows else f" of {domain.units} registered units"
    bound = f"({rounded_up(spent.epsilon)}, {spent.delta!r})-differentially private"
    text = (
        f"All that the {len(spent.runs)} private run(s) of privacy domain {spent.domain}{of} released up "
        f"to ledger row {spent.steps}, this artifact included, is {bound} for one unit."
    )
    return f"{text} What its weights held before is not covered." if foreign else text


def _run_of(spent: DomainStatement, run_id: str) -> RunStatement:
    for run in spent.runs:
        if run.run_id == run_id:
            return run
    raise IntegrityError(f"run {run_id} is not in the ledger of its domain {spent.domain}")


def _attested(run: RunStatement) -> Statement:
    """The second number of an attested run, which rests on what its client says."""
    if run.attested_probability is None:
        return {}
    told: Statement = {
        "sampling_probability": run.attested_probability,
        "run_epsilon": run.attested_epsilon,
    }
    return {"attested": told}


def _bound(run: RunStatement, delta: float) -> float:
    """Epsilon of the run alone, whatever it may still do."""
    if run.mode == MODE and run.max_participations is not None:
        return epsilon({run.run_id: (run.noise_multiplier, run.max_participations)}, delta)
    if run.sensitivity is not None:
        return epsilon({run.run_id: (run.noise_multiplier / run.sensitivity, 1)}, delta)
    return run.epsilon  # charged whole when the run was opened


def _mu(runs: Sequence[RunStatement]) -> float | None:
    """mu of one Gaussian mechanism that is all of them together; None where a run is no Gaussian."""
    total = 0.0
    for run in runs:
        if run.mode not in (MODE, BISR_MODE):
            return None
        scale = run.noise_multiplier
        if run.sensitivity is None:
            total += (run.participations or 0) / scale**2
        elif run.participations:
            total += (run.sensitivity / scale) ** 2
    return math.sqrt(total)
