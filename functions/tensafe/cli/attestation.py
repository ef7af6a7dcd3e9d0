"""`verify`: an attestation of a sampling answer, checked offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tensafe.cli.options import AsJson
from tensafe.cli.output import print_object
from tensafe.contracts.errors import InvalidRequest

if TYPE_CHECKING:
    from tensafe.audit.attestation import Statement, StatementV1

_ANSWER_MAX_BYTES: Final = 64 << 20
"""Of an answer with its text; each attestation in it has its own limit."""


def verify(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="An attestation, or an answer that brings it."),
    ],
    public_key: Annotated[
        list[Path] | None,
        typer.Option("--public-key", metavar="FILE", help="Public key to trust, PEM. Repeatable."),
    ] = None,
    answer: Annotated[
        Path | None,
        typer.Option(
            "--answer", metavar="FILE", help="The native face's answer whose tokens it must be about."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check offline what computed a sampling answer: policy, mode, adapter, counts, signature.

    Needs neither a data directory nor a key file. Exit code 1, naming the part, if anything was changed.
    """
    from tensafe.audit import attestation
    from tensafe.storage.signing import PEM_MAX_CHARS, PublicKey

    if not public_key:
        raise InvalidRequest(
            "say whose signature counts: --public-key FILE; `tensafe privacy public-key` prints the service's"
        )
    keys = [PublicKey.from_pem(_read(path, PEM_MAX_CHARS)) for path in public_key]
    try:
        with file.open("rb") as opened:
            text = opened.read(_ANSWER_MAX_BYTES + 1)
        trusted = {key.key_id: key for key in keys}
        statements = [attestation.verify(one, trusted) for one in attestation.unwrapped(text)]
        if answer is not None:
            attestation.check_output(_only(statements), *_sampled(answer))
    except attestation.AttestationRefused as error:
        if as_json:
            print_object({"valid": False, "where": error.where, "problem": error.problem}, as_json=True)
        raise
    told = [statement.model_dump(mode="json") for statement in statements]
    facts = {"valid": True, "answer_checked": answer is not None}
    if len(told) == 1:
        print_object({**facts, **told[0]}, as_json=as_json)
    else:
        print_object({**facts, "attestations": told}, as_json=as_json)


def _only(statements: list[Statement | StatementV1]) -> Statement | StatementV1:
    if len(statements) != 1:
        raise InvalidRequest("there is one attestation for each prompt: --answer is of one", field="answer")
    return statements[0]


def _sampled(answer: Path) -> tuple[list[list[int]], bytes]:
    """The sampled tokens and the salt of an answer of the native face."""
    import json

    try:
        body = json.loads(answer.read_bytes())
        tokens = [[int(token) for token in one["tokens"]] for one in body["sequences"]]
        return tokens, bytes.fromhex(body["attestation_salt"])
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(
            "the answer is not one of the native face: it needs sequences and attestation_salt",
            field="answer",
        ) from error


def _read(path: Path, most: int) -> str:
    with path.open(encoding="ascii", errors="replace") as file:
        return file.read(most + 1)
