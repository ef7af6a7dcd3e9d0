"""A signed statement about one sampling answer: what computed it, counted where the work was done.

Each field has a seal, SHA-256 under the field's name, and the signature is over all seals: so a check can
name the field that was changed. Of what was sampled the statement holds a commitment, SHA-256 over a salt of
32 random bytes and the tokens; the salt travels with the answer, not with the attestation, so that an
attestation that is shown around does not let anybody guess at the text.

Statements of the first version did not say what had to be evaluated; they are read, and no longer made.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from tensafe.contracts.errors import IntegrityError
from tensafe.contracts.execution import ExecutionMode, ExecutionPolicy
from tensafe.contracts.sampling import SampleResult
from tensafe.contracts.training import Strict
from tensafe.storage.signing import SIGNATURE_MAX_BYTES, PublicKey, Signer

FORMAT: Final = "tensafe/attestation/v2"
FORMAT_1: Final = "tensafe/attestation/v1"
MAX_BYTES: Final = 1 << 20
_SEAL: Final = b"tensafe/attestation/field/v1\0"
_SIGNED: Final = b"tensafe/attestation/seals/v1\0"
_OUTPUT: Final = b"tensafe/attestation/output/v1\0"
SALT_BYTES: Final = 32

Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Short = Annotated[str, Field(max_length=512)]
Count = Annotated[int, Field(ge=0, lt=2**53, strict=True)]


class AttestationRefused(IntegrityError):
    """The attestation is not what the service signed; `where` names the part."""

    code = "attestation_refused"

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"attestation refused at {where}: {problem}", field=where)
        self.where, self.problem = where, problem


class _Stated(Strict):
    """What statements of all versions say."""

    operation: Short
    """The sampling operation, `{session}:{seq}`."""
    base_model: Short
    policy: ExecutionPolicy
    mode: ExecutionMode
    adapter: Short | None = None
    digest: Sha256Hex | None = None
    """SHA-256 of a private adapter as it is quantised; of an ordinary one see `files_digest`."""
    epoch: Count | None = None
    parameters: Short | None = None
    sites: Count
    tokens: Count
    """Rows that forward passes ran for the answer; counted only where it is evaluated under encryption."""
    evaluated: Count
    """(site, row) pairs."""
    sequences: Count
    sampled_tokens: Count
    output: Sha256Hex
    """Commitment to the sampled tokens; see `commitment`."""
    software: Annotated[dict[Short, Short], Field(max_length=16)]
    issued_at_ms: Count


class StatementV1(_Stated):
    """As it was before version 2: it does not say how many rows were needed."""

    format: Literal["tensafe/attestation/v1"] = FORMAT_1


class Statement(_Stated):
    """What is vouched for, over all continuations of the answer; see `Execution`.

    tokens = prompt_tokens - cached_tokens + sampled_tokens - sequences + recomputed_tokens + overrun_tokens,
    since the last token of each continuation is not fed, and that many rows were evaluated at every site.
    """

    format: Literal["tensafe/attestation/v2"] = FORMAT
    fallback: Short | None = None
    """Why it was computed in the clear though encryption is preferred: the code of the refusal otherwise."""
    prompt_tokens: Count
    """Of all prompts: each continuation has its own, if of the same tokens."""
    cached_tokens: Count
    recomputed_tokens: Count
    overrun_tokens: Count
    evaluated_by_site: Annotated[dict[Short, Count], Field(max_length=4096)]


class _Sealed(Strict):
    seals: Annotated[dict[Short, Sha256Hex], Field(max_length=32)]
    key_id: Short
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$", max_length=2 * SIGNATURE_MAX_BYTES)]


class Attestation(_Sealed):
    """A statement, the seals of its fields, and the signature over them."""

    statement: Statement


class AttestationV1(_Sealed):
    """As it was signed before version 2."""

    statement: StatementV1


def commitment(tokens: list[list[int]], salt: bytes) -> str:
    """SHA-256 (hex) over the salt and the sampled tokens of every continuation, in order."""
    return hashlib.sha256(_OUTPUT + salt + _canonical(tokens)).hexdigest()


def state(
    result: SampleResult,
    *,
    operation: str,
    base_model: str,
    policy: ExecutionPolicy,
    software: Mapping[str, str],
    issued_at_ms: int,
) -> tuple[Statement, bytes]:
    """The statement about a result that an engine has counted, and the salt of its commitment."""
    execution = result.execution
    if execution is None:
        raise AttestationRefused("mode", "no engine has said what computed this answer")
    salt = secrets.token_bytes(SALT_BYTES)
    tokens = [sequence.tokens.tolist() for sequence in result.sequences]
    statement = Statement(
        operation=operation,
        base_model=base_model,
        policy=policy,
        mode=execution.mode,
        adapter=execution.adapter,
        digest=execution.digest,
        epoch=execution.epoch,
        parameters=execution.parameters,
        fallback=execution.fallback,
        sites=execution.sites,
        prompt_tokens=execution.prompt_tokens,
        cached_tokens=execution.cached_tokens,
        tokens=execution.tokens,
        recomputed_tokens=execution.recomputed_tokens,
        overrun_tokens=execution.overrun_tokens,
        evaluated=execution.evaluated,
        evaluated_by_site=dict(execution.evaluated_by_site),
        sequences=len(tokens),
        sampled_tokens=sum(map(len, tokens)),
        output=commitment(tokens, salt),
        software=dict(software),
        issued_at_ms=issued_at_ms,
    )
    _require_sense(statement)
    return statement, salt


def files_digest(files: Mapping[str, bytes]) -> str:
    """Of an ordinary adapter, over adapter_config.json and adapter_model.safetensors: what `sha256sum
    adapter_config.json adapter_model.safetensors | sha256sum` says.
    """
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def attest(statement: Statement, signer: Signer) -> Attestation:
    """Sign. Raises Unavailable if the key cannot be reached."""
    seals = _seals(statement)
    signature = signer.sign(_signed_digest(seals, signer.key_id)).hex()
    return Attestation(statement=statement, seals=seals, key_id=signer.key_id, signature=signature)


def verify(text: bytes, trusted: Mapping[str, PublicKey]) -> Statement | StatementV1:
    """The statement, of either version, if one of the trusted keys (by key id) signed it.

    Raises AttestationRefused.
    """
    attestation = _parse(text)
    key = trusted.get(attestation.key_id)
    if key is None:
        raise AttestationRefused("key_id", f"{attestation.key_id} is not a key that you trust")
    digest = _signed_digest(attestation.seals, attestation.key_id)
    try:
        key.verify(digest, bytes.fromhex(attestation.signature))
    except IntegrityError:
        raise AttestationRefused("signature", "it is not over these seals") from None
    expected = _seals(attestation.statement)
    for name in sorted(expected.keys() | attestation.seals.keys()):
        if expected.get(name) != attestation.seals.get(name):
            raise AttestationRefused(f"statement.{name}", "it was changed after it was signed")
    _require_sense(attestation.statement)
    return attestation.statement


def unwrapped(text: bytes) -> list[bytes]:
    """The attestations in an answer: the one beside its salt, or one for each prompt (OpenAI's face); any
    other text as it is.
    """
    try:
        values = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        return [text]
    if not isinstance(values, dict):
        return [text]
    if isinstance(values.get("attestation"), dict):
        return [json.dumps(values["attestation"]).encode()]
    if isinstance(values.get("attestations"), list) and values["attestations"]:
        listed = [one.get("attestation") if isinstance(one, dict) else None for one in values["attestations"]]
        return [json.dumps(one).encode() for one in listed]
    return [text]


def check_output(statement: Statement | StatementV1, tokens: list[list[int]], salt: bytes) -> None:
    """Raises AttestationRefused unless these are the sampled tokens that the statement is about."""
    if len(salt) != SALT_BYTES or commitment(tokens, salt) != statement.output:
        raise AttestationRefused("statement.output", "these are not the tokens that it is about")


def _require_sense(statement: Statement | StatementV1) -> None:
    """What no honest service signs: encryption required and not run, or less evaluated than was needed."""
    he = statement.mode is ExecutionMode.HE
    if statement.policy is ExecutionPolicy.HE_REQUIRED and not he:
        raise AttestationRefused("statement.mode", "the policy requires encryption and it did not run")
    if he and (statement.evaluated == 0 or statement.evaluated != statement.sites * statement.tokens):
        raise AttestationRefused("statement.evaluated", "not every token was evaluated at every site")
    if he and None in (statement.adapter, statement.digest, statement.epoch, statement.parameters):
        raise AttestationRefused("statement.digest", "an encrypted evaluation names adapter and parameters")
    if he and statement.tokens < statement.sampled_tokens:
        raise AttestationRefused("statement.tokens", "a token was sampled from a row that was not computed")
    if isinstance(statement, Statement):
        _require_counts(statement, he=he)


def _require_counts(statement: Statement, *, he: bool) -> None:
    """The relation of `Statement` between what was asked for and what was evaluated."""
    preferred = statement.policy is ExecutionPolicy.HE_PREFERRED
    if statement.fallback is not None and not (
        preferred and statement.mode is ExecutionMode.PLAINTEXT and statement.digest is not None
    ):
        raise AttestationRefused("statement.fallback", "only HE_PREFERRED falls back to weights in the clear")
    if statement.prompt_tokens < statement.sequences:
        raise AttestationRefused("statement.prompt_tokens", "every continuation has a prompt")
    by_site = statement.evaluated_by_site
    if not he:
        if by_site or statement.sites or statement.evaluated or statement.tokens:
            raise AttestationRefused("statement.evaluated", "nothing is evaluated without encryption")
        if statement.recomputed_tokens or statement.overrun_tokens:
            raise AttestationRefused("statement.tokens", "rows are not counted without encryption")
        return
    if len(by_site) != statement.sites or any(rows != statement.tokens for rows in by_site.values()):
        raise AttestationRefused("statement.evaluated_by_site", "a site has other rows than the passes ran")
    needed = statement.prompt_tokens - statement.cached_tokens
    needed += statement.sampled_tokens - statement.sequences
    if statement.tokens != needed + statement.recomputed_tokens + statement.overrun_tokens:
        raise AttestationRefused("statement.tokens", f"{needed} rows were needed, and others evaluated")


def _parse(text: bytes) -> Attestation | AttestationV1:
    if len(text) > MAX_BYTES:
        raise AttestationRefused("file", f"it is larger than {MAX_BYTES} bytes")
    try:
        values = json.loads(text, object_pairs_hook=_no_duplicates)
        return (AttestationV1 if _format(values) == FORMAT_1 else Attestation).model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in problem["loc"]) or "file"
        raise AttestationRefused(where, str(problem["msg"])[:200]) from None
    except (ValueError, RecursionError):
        raise AttestationRefused("file", "it is not JSON") from None


def _format(values: Any) -> Any:  # noqa: ANN401 - any JSON value
    statement = values.get("statement") if isinstance(values, dict) else None
    return statement.get("format") if isinstance(statement, dict) else None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _seals(statement: Statement | StatementV1) -> dict[str, str]:
    fields = statement.model_dump(mode="json")
    return {
        name: hashlib.sha256(_SEAL + _canonical([name, value])).hexdigest() for name, value in fields.items()
    }


def _signed_digest(seals: Mapping[str, str], key_id: str) -> bytes:
    return hashlib.sha256(_SIGNED + _canonical([key_id, dict(seals)])).digest()


def _canonical(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
