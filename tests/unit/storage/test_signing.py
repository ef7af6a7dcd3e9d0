"""Signing keys: sealed at rest, never replaced, and nothing but their own signatures verifies."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tensafe.contracts.errors import ConfigurationError, IntegrityError, InvalidRequest
from tensafe.storage.signing import PublicKey, Signer
from tensafe.storage.signing_key import create_signing_key, open_signing_key
from tests.fakes import P256Signer, memory_signer

SECRET, OTHER = bytes(range(32)), bytes(range(1, 33))
DIGEST = bytes(range(100, 132))


@pytest.fixture(params=[memory_signer, P256Signer], ids=["ed25519", "p256"])
def signer(request: pytest.FixtureRequest) -> Signer:
    made: Signer = request.param()
    return made


def test_a_signature_is_verified_with_the_public_key(signer: Signer) -> None:
    key = PublicKey.from_pem(signer.public_key)
    assert (key.kind, key.key_id, key.pem) == (signer.kind, signer.key_id, signer.public_key)
    signature = signer.sign(DIGEST)
    key.verify(DIGEST, signature)
    wrong = [(DIGEST[::-1], signature), (DIGEST, signature[:-1]), (DIGEST, b""), (DIGEST, signature + b"\0")]
    wrong += [
        (DIGEST, signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :])
        for at in range(len(signature))
    ]
    for digest, altered in wrong:
        with pytest.raises(IntegrityError, match=key.key_id):
            key.verify(digest, altered)
    for other in (memory_signer(), P256Signer()):
        with pytest.raises(IntegrityError):
            PublicKey.from_pem(other.public_key).verify(DIGEST, signature)


def test_only_digests_are_signed_and_verified() -> None:
    signer = memory_signer()
    with pytest.raises(InvalidRequest, match="32 bytes"):
        signer.sign(b"a message")
    with pytest.raises(IntegrityError, match="32 bytes"):
        PublicKey.from_pem(signer.public_key).verify(b"a message", b"")


def test_other_keys_are_refused() -> None:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key = rsa.generate_private_key(65537, 2048).public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, form).decode()
    for text in (pem, "", "-----BEGIN PUBLIC KEY-----\n", "x" * 10_000):
        with pytest.raises(InvalidRequest):
            PublicKey.from_pem(text)


def test_a_key_is_sealed_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "signing-key.json"
    key_id = create_signing_key(path, SECRET)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["signing-key.json"]
    signer = open_signing_key(path, SECRET)
    assert signer.key_id == key_id
    PublicKey.from_pem(signer.public_key).verify(DIGEST, signer.sign(DIGEST))
    seed = signer._key.private_bytes_raw()
    for form in (seed, seed.hex().encode(), base64.b64encode(seed)):
        assert form not in path.read_bytes()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "signing-key.json"
    create_signing_key(path, SECRET)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="never overwritten"):
        create_signing_key(path, SECRET)
    assert path.read_bytes() == before


def test_what_a_killed_creation_left_is_no_key_and_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "signing-key.json"
    path.with_name("signing-key.json.new").write_text("{")
    with pytest.raises(ConfigurationError, match="there is no signing key"):
        open_signing_key(path, SECRET)
    create_signing_key(path, SECRET)
    open_signing_key(path, SECRET)


def test_another_key_files_signing_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing-key.json"
    create_signing_key(path, SECRET)
    with pytest.raises(ConfigurationError, match="belongs to another key file"):
        open_signing_key(path, OTHER)


@pytest.mark.parametrize("field", ["format", "version", "kind", "key_id", "public_key", "sealed"])
def test_an_altered_file_is_refused(tmp_path: Path, field: str) -> None:
    path, other = tmp_path / "signing-key.json", tmp_path / "other.json"
    create_signing_key(path, SECRET)
    create_signing_key(other, SECRET)
    fields = json.loads(path.read_text())
    strange = {"format": "x", "version": 2, "kind": "rsa"}
    path.write_text(json.dumps({**fields, field: strange.get(field, json.loads(other.read_text())[field])}))
    with pytest.raises(ConfigurationError, match="damaged"):
        open_signing_key(path, SECRET)
    path.write_text(json.dumps({name: value for name, value in fields.items() if name != field}))
    with pytest.raises(ConfigurationError, match="damaged"):
        open_signing_key(path, SECRET)
