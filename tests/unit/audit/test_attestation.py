"""HE-01: evidence on every answer: what is changed is refused by name; nonsense is not signed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tensafe.audit import attestation
from tensafe.audit.attestation import (
    AttestationRefused,
    AttestationV1,
    Statement,
    StatementV1,
    attest,
    check_output,
    files_digest,
    state,
    verify,
)
from tensafe.cli.app import app
from tensafe.contracts.execution import Execution, ExecutionMode, ExecutionPolicy
from tensafe.contracts.payloads import JSON, PROTOBUF
from tensafe.contracts.sampling import SampleResult, Sequence
from tensafe.storage.signing import PublicKey, Signer
from tensafe.wire import tinker_v0_38_pb2 as pb
from tensafe.wire.results import Attested, attested_of, encode_sample, sample_json
from tests.fakes.signers import P256Signer, memory_signer

TOKENS = [[5, 6, 7], [8]]
EXECUTION = Execution(
    ExecutionMode.HE,
    "A@3",
    "ab" * 32,
    2,
    "bfv/1",
    prompt_tokens=10,
    cached_tokens=3,
    tokens=12,
    recomputed_tokens=2,
    overrun_tokens=1,
    evaluated_by_site=dict.fromkeys("abcd", 12),
)
RESULT = SampleResult(
    tuple(Sequence(np.array(t, np.int32), np.zeros(len(t), np.float32), "length") for t in TOKENS),
    execution=EXECUTION,
)


def stated(result: SampleResult = RESULT, policy: ExecutionPolicy = ExecutionPolicy.HE_REQUIRED) -> Any:
    return state(
        result,
        operation="s:sample:0:1",
        base_model="base",
        policy=policy,
        software={"tensafe": "1", "vllm": "0.32.0"},
        issued_at_ms=1_700_000_000_000,
    )


def canonical(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def trusted(signer: Signer) -> dict[str, PublicKey]:
    return {signer.key_id: PublicKey.from_pem(signer.public_key)}


@pytest.fixture(params=[memory_signer, P256Signer])
def signer(request: pytest.FixtureRequest) -> Signer:
    return request.param()  # type: ignore[no-any-return]


def test_what_was_signed_verifies_with_the_public_key_alone(signer: Signer) -> None:
    statement, salt = stated()
    text = attest(statement, signer).model_dump_json().encode()
    assert verify(text, trusted(signer)) == statement
    assert (statement.sampled_tokens, statement.evaluated, statement.mode) == (4, 48, ExecutionMode.HE)
    check_output(statement, TOKENS, salt)
    with pytest.raises(AttestationRefused, match=r"statement\.output"):
        check_output(statement, [[5, 6, 7], [9]], salt)
    assert salt.hex() not in text.decode()


def test_any_byte_that_is_changed_is_refused() -> None:
    signer = memory_signer()
    text = attest(stated()[0], signer).model_dump_json().encode()
    keys = trusted(signer)
    for position in range(len(text)):
        for flip in (0x01, 0x20):
            changed = bytearray(text)
            changed[position] ^= flip
            with pytest.raises(AttestationRefused) as refused:
                verify(bytes(changed), keys)
            assert refused.value.where


@pytest.mark.parametrize("field", Statement.model_fields)
def test_a_changed_field_is_named(field: str) -> None:
    signer = memory_signer()
    document = json.loads(attest(stated()[0], signer).model_dump_json())
    other = {
        "format": "tensafe/attestation/v3",
        "policy": "HE_PREFERRED",
        "mode": "PLAINTEXT",
        "software": {},
        "evaluated_by_site": {},
        "digest": "cd" * 32,
        "output": "cd" * 32,
    }
    value = document["statement"][field]
    document["statement"][field] = other.get(field, value + 1 if isinstance(value, int) else "other")
    with pytest.raises(AttestationRefused) as refused:
        verify(canonical(document), trusted(signer))
    assert field in refused.value.where


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(signature="00" * 64), "signature"),
        (lambda d: d.update(signature=d["signature"].upper()), "signature"),
        (lambda d: d.update(key_id="other"), "key_id"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["statement"].update(extra=1), "statement.extra"),
        (lambda d: d["seals"].update(epoch="0" * 64), "signature"),
        (lambda d: d["seals"].pop("epoch"), "signature"),
        (lambda d: d["statement"].update(tokens=True), "statement.tokens"),
        (lambda d: d.pop("seals"), "seals"),
    ],
)
def test_other_changes_are_named_too(change: Any, where: str) -> None:
    signer = memory_signer()
    document = json.loads(attest(stated()[0], signer).model_dump_json())
    change(document)
    with pytest.raises(AttestationRefused) as refused:
        verify(canonical(document), trusted(signer))
    assert refused.value.where == where


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 60_000, b" " * 70_000])
def test_what_is_no_attestation_is_refused(text: bytes) -> None:
    with pytest.raises(AttestationRefused):
        verify(text, {})


@pytest.mark.parametrize(
    "change",
    [
        {"mode": ExecutionMode.PLAINTEXT},
        {"mode": ExecutionMode.NONE},
        {"evaluated_by_site": dict.fromkeys("abcd", 12) | {"d": 11}},
        {"evaluated_by_site": {}},
        {"evaluated_by_site": dict.fromkeys("abcd", 0), "tokens": 0},
        # One row less than is needed, at every site, and one more.
        {"evaluated_by_site": dict.fromkeys("abcd", 11), "tokens": 11},
        {"evaluated_by_site": dict.fromkeys("abcd", 13), "tokens": 13},
        {"cached_tokens": 2},
        {"prompt_tokens": 11},
        {"overrun_tokens": 0},
        # As few rows as no token could be sampled from.
        {"evaluated_by_site": dict.fromkeys("abcd", 3), "tokens": 3, "cached_tokens": 12},
        {"digest": None},
        {"parameters": None},
    ],
)
def test_he_01_nothing_is_signed_that_no_honest_service_says(change: dict[str, Any]) -> None:
    with pytest.raises(AttestationRefused):
        stated(replace(RESULT, execution=replace(EXECUTION, **change)))
    with pytest.raises(AttestationRefused):
        stated(replace(RESULT, execution=None))


def test_without_encryption_no_rows_are_claimed() -> None:
    plain = Execution(ExecutionMode.PLAINTEXT, "A@3", prompt_tokens=10, cached_tokens=3)
    statement, _ = stated(replace(RESULT, execution=plain), ExecutionPolicy.HE_PREFERRED)
    assert (statement.prompt_tokens, statement.cached_tokens, statement.tokens) == (10, 3, 0)
    for change in ({"tokens": 1}, {"overrun_tokens": 1}, {"evaluated_by_site": {"a": 1}}):
        with pytest.raises(AttestationRefused):
            stated(replace(RESULT, execution=replace(plain, **change)), ExecutionPolicy.HE_PREFERRED)


def test_a_fallback_is_stated_with_what_it_fell_back_to() -> None:
    fallen = Execution(
        ExecutionMode.PLAINTEXT, "A@3", "ab" * 32, fallback="he_timeout", prompt_tokens=10, cached_tokens=3
    )
    statement, _ = stated(replace(RESULT, execution=fallen), ExecutionPolicy.HE_PREFERRED)
    assert (statement.fallback, statement.digest) == ("he_timeout", "ab" * 32)
    for policy, changed in (
        (ExecutionPolicy.PLAINTEXT_ONLY, fallen),
        (ExecutionPolicy.HE_REQUIRED, fallen),
        (ExecutionPolicy.HE_PREFERRED, replace(fallen, digest=None)),
        (ExecutionPolicy.HE_PREFERRED, replace(fallen, mode=ExecutionMode.NONE)),
        (ExecutionPolicy.HE_PREFERRED, replace(EXECUTION, fallback="he_timeout")),
    ):
        with pytest.raises(AttestationRefused):
            stated(replace(RESULT, execution=changed), policy)


def first_version(signer: Signer, **change: Any) -> bytes:
    """As the release before signed them."""
    now = stated()[0].model_dump(mode="json") | {"tokens": 11, "evaluated": 44} | change
    fields = {name: now[name] for name in StatementV1.model_fields if name != "format"}
    statement = StatementV1.model_validate_json(json.dumps(fields))
    seals = attestation._seals(statement)
    signature = signer.sign(attestation._signed_digest(seals, signer.key_id)).hex()
    signed = AttestationV1(statement=statement, seals=seals, key_id=signer.key_id, signature=signature)
    return signed.model_dump_json().encode()


def test_an_attestation_of_the_first_version_is_read_as_such(signer: Signer) -> None:
    text = first_version(signer)
    statement = verify(text, trusted(signer))
    assert (statement.format, statement.tokens) == ("tensafe/attestation/v1", 11)
    with pytest.raises(AttestationRefused, match=r"statement\.tokens"):
        verify(first_version(signer, tokens=3, evaluated=12), trusted(signer))
    other = text.replace(b"attestation/v1", b"attestation/v2")
    with pytest.raises(AttestationRefused, match="statement"):
        verify(other, trusted(signer))


def test_it_travels_in_both_forms_of_a_result_and_the_sdk_skips_it() -> None:
    word = Attested({"statement": {"a": 1}}, "ab")
    protobuf, plain = encode_sample(RESULT, word), encode_sample(RESULT)
    assert attested_of(protobuf, PROTOBUF) == word
    assert attested_of(plain, PROTOBUF) is None
    read, expected = pb.SampleResponse.FromString(protobuf), pb.SampleResponse.FromString(plain)
    read.DiscardUnknownFields()
    assert read == expected
    assert attested_of(canonical(sample_json(RESULT, word)), JSON) == word
    assert attested_of(canonical(sample_json(RESULT)), JSON) is None


def test_an_ordinary_adapter_s_digest_is_what_sha256sum_says(tmp_path: Path) -> None:
    files = {"adapter_model.safetensors": b"weights", "adapter_config.json": b"{}"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    command = "sha256sum adapter_config.json adapter_model.safetensors | sha256sum"
    said = subprocess.check_output(["/bin/sh", "-c", command], cwd=tmp_path, text=True)
    assert files_digest(files) == said.split()[0]
    for name in files:
        assert files_digest(files | {name: b"other"}) != files_digest(files)


def test_everything_that_was_counted_is_stated() -> None:
    statement, _ = stated()
    said = statement.model_dump()
    for field in dataclasses.fields(EXECUTION):
        assert said[field.name] == getattr(EXECUTION, field.name), field.name


def test_the_command_says_what_ran_or_what_is_wrong(tmp_path: Path) -> None:
    signer = memory_signer()
    statement, salt = stated()
    document = json.loads(attest(statement, signer).model_dump_json())
    key, file, answer = (tmp_path / name for name in ("key.pem", "attestation.json", "answer.json"))
    key.write_text(signer.public_key)
    file.write_text(json.dumps(document, indent=1))
    answer.write_text(json.dumps(sample_json(RESULT, Attested(document, salt.hex()))))

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["verify", str(file), *arguments])
        return done.exit_code, done.output

    code, output = run("--public-key", str(key), "--answer", str(answer), "--json")
    assert code == 0
    assert json.loads(output) | {"valid": True, "mode": "HE", "answer_checked": True} == json.loads(output)
    file.write_text(json.dumps({"attestation": document, "attestation_salt": salt.hex()}))
    code, output = run("--public-key", str(key), "--json")
    assert (code, json.loads(output)["valid"]) == (0, True)
    file.write_text(json.dumps({"attestation": document | {"key_id": "other"}, "attestation_salt": ""}))
    code, output = run("--public-key", str(key))
    assert (code, "key_id" in output) == (1, True)
    # An answer of OpenAI's face brings one for each prompt, beside its text.
    brought = {"attestation": document, "attestation_salt": salt.hex()}
    file.write_text(json.dumps({"object": "text_completion", "choices": [], "attestations": [brought]}))
    code, output = run("--public-key", str(key), "--json")
    assert (code, json.loads(output)["mode"]) == (0, "HE")
    file.write_text(json.dumps({"choices": [{"text": "a" * 2_000_000}], "attestations": [brought] * 2}))
    code, output = run("--public-key", str(key), "--json")
    assert (code, [one["mode"] for one in json.loads(output)["attestations"]]) == (0, ["HE", "HE"])
    code, output = run("--public-key", str(key), "--answer", str(answer))
    assert (code, "one attestation for each prompt" in output) == (2, True)
    for lacking in (None, {"attestation": None}, {"attestation": document | {"signature": "00"}}):
        file.write_text(json.dumps({"choices": [], "attestations": [brought, lacking]}))
        code, output = run("--public-key", str(key))
        assert code == 1, lacking
    file.write_text(json.dumps(document, indent=1))
    code, output = run()
    assert code == 2
    document["statement"]["epoch"] = 3
    file.write_text(json.dumps(document))
    code, output = run("--public-key", str(key))
    assert code == 1
    assert "statement.epoch" in output
