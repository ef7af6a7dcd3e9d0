"""Checks an exported ledger with nothing but the file and a public key.

Believes nothing that the file says: every signature, every hash and link of the chain; every unit's
participations counted again from the tags; every epsilon held to the closed form; every row to its run's
frozen mechanism and budgets. Shares no counting and no accounting with what charges, only what signatures
say. The neighbouring relation is adding or
removing one unit; what epsilon means is in docs/privacy.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final, TypeVar

from pydantic import ValidationError

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.privacy.signature_checks import SignatureChecks
from tensafe.privacy.signing import header_digest, row_digest, trailer_digest
from tensafe.privacy.verify_forms import HEADER, HeaderForm, LedgerRefused, RowLineForm, TrailerForm
from tensafe.privacy.verify_replay import Replay, Report
from tensafe.storage.signing import SIGNATURE_MAX_BYTES, PublicKey

LINE_MAX_BYTES: Final = 4 * 1024 * 1024
_ROW_BEGINS: Final = b'{"hash":'
_TRAILER_BEGINS: Final = b'{"head":'
"""How the one form of a row and of a trailer begin; for what an error says, not for what is accepted."""
_Form = TypeVar("_Form", HeaderForm, RowLineForm, TrailerForm)  # or a later version of one


def verify(file: BinaryIO, trusted: Mapping[str, PublicKey], *, processes: int | None = None) -> Report:
    """Verify an export that `file` reads from its beginning.

    `trusted`: the public keys by key id; a key that the file brings along is not trusted for that.
    Raises LedgerRefused naming the header, row or trailer.
    """
    digest = hashlib.sha256()
    lines = _lines(file)
    raw = next(lines, None)
    if raw is None:
        raise LedgerRefused("header", "the file is empty")
    header = _parse(HEADER.validate_json, raw, "header")
    _check_signed("header", raw, header.key_id, header.signature, trusted)
    digest.update(raw)
    replayed = Replay(header)
    pems = {key_id: key.pem for key_id, key in trusted.items()}
    checks = SignatureChecks(pems) if processes is None else SignatureChecks(pems, processes)
    with checks:
        problem: LedgerRefused | None = None
        try:
            trailer_raw = _rows(lines, digest, replayed, checks, trusted)
        except LedgerRefused as error:
            problem = error
        # A wrong signature further up comes first, though it is known later.
        wrong = checks.finish()
    if wrong is not None:
        raise LedgerRefused(replayed.name(wrong), "its signature is not one of the key that it names")
    if problem is not None:
        raise problem
    _check_trailer(trailer_raw, lines, digest, replayed, trusted)
    return replayed.report(tuple(sorted({header.key_id, *replayed.signers})))


def keys_of(file: BinaryIO, key_ids: frozenset[str]) -> dict[str, PublicKey]:
    """The public keys of these ids that the export's header brings along; the id says that they are right.

    Raises InvalidRequest for an id that the header does not have.
    """
    header = _parse(HEADER.validate_json, file.readline(LINE_MAX_BYTES), "header")
    found = {}
    for key in (PublicKey.from_pem(one.public_key) for one in header.keys):
        if key.key_id in key_ids:
            found[key.key_id] = key
    missing = sorted(key_ids - found.keys())
    if missing:
        raise InvalidRequest(
            f"the export does not bring the public key {missing[0][:80]!r} along; give it with --public-key"
        )
    return found


def _lines(file: BinaryIO) -> Iterator[bytes]:
    number = 0
    while raw := file.readline(LINE_MAX_BYTES + 1):
        number += 1
        if len(raw) > LINE_MAX_BYTES:
            raise LedgerRefused(f"line {number}", f"it is longer than {LINE_MAX_BYTES} bytes")
        yield raw


def _parse(read: Callable[[bytes], _Form], raw: bytes, where: str) -> _Form:
    """The line, which must be exactly what an export would write: no byte of it may be another."""
    try:
        parsed = read(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the line"
        raise LedgerRefused(where, f"{place[:200]}: {first['msg']}") from None
    if parsed.canonical().encode() + b"\n" != raw:
        raise LedgerRefused(where, "not in the one form that an export has")
    return parsed


def _check_signed(
    where: str, raw: bytes, key_id: str, signature: str, trusted: Mapping[str, PublicKey]
) -> None:
    fields = json.loads(raw)
    del fields["signature"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    statement = header_digest(text) if where == "header" else trailer_digest(text)
    try:
        _trusted(where, key_id, trusted).verify(statement, bytes.fromhex(signature))
    except LedgerRefused:
        raise
    except IntegrityError:
        raise LedgerRefused(where, "its signature is not one of the key that it names") from None


def _trusted(where: str, key_id: str, trusted: Mapping[str, PublicKey]) -> PublicKey:
    key = trusted.get(key_id)
    if key is None:
        raise LedgerRefused(where, f"signed with key {key_id[:80]!r}, which is not the one to be trusted")
    return key


def _rows(
    lines: Iterator[bytes],
    digest: hashlib._Hash,
    replayed: Replay,
    checks: SignatureChecks,
    trusted: Mapping[str, PublicKey],
) -> bytes:
    """Take as many rows as the signed header says; the line that follows them. Raises LedgerRefused."""
    for raw in lines:
        where = f"row {replayed.rows + 1}"
        if replayed.is_whole:
            if raw.startswith(_ROW_BEGINS):
                raise LedgerRefused(where, f"one row more than the {replayed.rows} of the header")
            return raw
        if raw.startswith(_TRAILER_BEGINS):
            raise LedgerRefused(where, "missing: the trailer stands in its place")
        digest.update(raw)
        line = _parse(RowLineForm.model_validate_json, raw, where)
        if len(line.signature) > 2 * SIGNATURE_MAX_BYTES:
            raise LedgerRefused(where, "the signature is too long")
        _trusted(where, line.key_id, trusted)
        replayed.take(line, where)
        packed = bytes.fromhex(line.tags)
        checks.add(line.key_id, row_digest(line.hash, packed), bytes.fromhex(line.signature))
        replayed.signers.add(line.key_id)
    if replayed.is_whole:
        raise LedgerRefused("trailer", f"missing: the file is cut off after row {replayed.rows}")
    raise LedgerRefused(f"row {replayed.rows + 1}", "missing: the file is cut off before it")


def _check_trailer(
    raw: bytes,
    lines: Iterator[bytes],
    digest: hashlib._Hash,
    replayed: Replay,
    trusted: Mapping[str, PublicKey],
) -> None:
    trailer = _parse(TrailerForm.model_validate_json, raw, "trailer")
    _check_signed("trailer", raw, trailer.key_id, trailer.signature, trusted)
    replayed.finish()
    same = (trailer.rows, trailer.head, trailer.sha256)
    if same != (replayed.rows, replayed.previous, digest.hexdigest()):
        raise LedgerRefused("trailer", "it belongs to another export")
    if next(lines, None) is not None:
        raise LedgerRefused("trailer", "something follows it")
