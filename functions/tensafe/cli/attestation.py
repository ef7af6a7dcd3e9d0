"""`verify`: an attestation of a sampling answer, checked offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tensafe.cli.options import AsJson
from tensafe.cli.output import print_object
from tensafe.contracts.errors import InvalidRequest


def verify(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="An attestation, or what /v1/futures/ID/attestation answers."),
    ],
    public_key: Annotated[
        list[Path] | None,
        typer.Option("--public-key", metavar="FILE", help="Public key to trust, PEM. Repeatable."),
    ] = None,
    answer: Annotated[
        Path | None,
        typer.Option("--answer", metavar="FILE", help="The answer (JSON) whose tokens it must be about."),
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
            text = opened.read(attestation.MAX_BYTES + 1)
        statement = attestation.verify(attestation.unwrapped(text), {key.key_id: key for key in keys})
        if answer is not None:
            attestation.check_output(statement, *_sampled(answer))
    except attestation.AttestationRefused as error:
        if as_json:
            print_object({"valid": False, "where": error.where, "problem": error.problem}, as_json=True)
        raise
    facts = {"valid": True, "answer_checked": answer is not None, **statement.model_dump(mode="json")}
    print_object(facts, as_json=as_json)


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
