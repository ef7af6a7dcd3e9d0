"""Sealed bytes open under their own key, scope and part, whole and unaltered, or not at all."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import IntegrityError, PayloadTooLarge
from tensafe.vault import aead
from tensafe.vault.scope import Scope, domain_scope, stream_scope

KEY = bytes(range(32))
SCOPE = stream_scope("acme", "s-1:train:0")
PART = "op/7/payload"

names = st.text(min_size=1, max_size=40)
scopes = st.builds(Scope, names, names)


@given(st.binary(max_size=300), scopes, names)
def test_what_is_sealed_is_opened(plaintext: bytes, scope: Scope, part: str) -> None:
    sealed = aead.seal(KEY, scope, part, plaintext)
    assert aead.open_sealed(KEY, scope, part, sealed) == plaintext
    assert len(sealed) == len(plaintext) + aead.OVERHEAD_BYTES


@given(scopes, names, scopes, names)
def test_another_place_does_not_open(scope: Scope, part: str, other: Scope, other_part: str) -> None:
    """No two places have the same associated data, however their names are cut."""
    sealed = aead.seal(KEY, scope, part, b"secret")
    if (scope, part) == (other, other_part):
        return
    with pytest.raises(IntegrityError):
        aead.open_sealed(KEY, other, other_part, sealed)


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        (stream_scope("rival", "s-1:train:0"), PART),
        (stream_scope("acme", "s-1:train:1"), PART),
        (domain_scope("acme", "s-1:train:0"), PART),
        (SCOPE, "op/8/payload"),
        (SCOPE, "op/7/result"),
        (SCOPE, ""),
        (Scope('acme","stream/s-1:train:0', "x"), PART),
    ],
)
def test_a_moved_ciphertext_does_not_open(scope: Scope, part: str) -> None:
    sealed = aead.seal(KEY, SCOPE, PART, b"secret")
    with pytest.raises(IntegrityError):
        aead.open_sealed(KEY, scope, part, sealed)


def test_every_altered_byte_is_found() -> None:
    sealed = aead.seal(KEY, SCOPE, PART, b"secret")
    for place in range(len(sealed)):
        for bit in (1, 128):
            altered = bytearray(sealed)
            altered[place] ^= bit
            with pytest.raises(IntegrityError):
                aead.open_sealed(KEY, SCOPE, PART, bytes(altered))


def test_every_cut_and_every_addition_is_found() -> None:
    sealed = aead.seal(KEY, SCOPE, PART, b"secret")
    for length in range(len(sealed)):
        with pytest.raises(IntegrityError):
            aead.open_sealed(KEY, SCOPE, PART, sealed[:length])
    with pytest.raises(IntegrityError):
        aead.open_sealed(KEY, SCOPE, PART, sealed + b"\0")


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused_by_name(version: int) -> None:
    sealed = aead.seal(KEY, SCOPE, PART, b"secret")
    with pytest.raises(IntegrityError, match="not a sealed message of this version"):
        aead.open_sealed(KEY, SCOPE, PART, bytes([version]) + sealed[1:])


def test_another_key_does_not_open() -> None:
    with pytest.raises(IntegrityError):
        aead.open_sealed(aead.new_data_key(), SCOPE, PART, aead.seal(KEY, SCOPE, PART, b"secret"))


def test_the_format_is_what_it_says() -> None:
    """`0x01 || nonce || AES-256-GCM`, with the place as JSON in the associated data."""
    sealed = aead.seal(KEY, SCOPE, PART, b"secret")
    place = json.dumps([1, "acme", "stream/s-1:train:0", PART], separators=(",", ":")).encode()
    assert sealed[0] == 1
    assert AESGCM(KEY).decrypt(sealed[1:13], sealed[13:], place) == b"secret"
    # Published once, read for ever: bytes that this very code has written.
    old = bytes.fromhex("01") + bytes(12) + AESGCM(KEY).encrypt(bytes(12), b"secret", place)
    assert aead.open_sealed(KEY, SCOPE, PART, old) == b"secret"


def test_a_nonce_is_not_used_twice() -> None:
    nonces = {aead.seal(KEY, SCOPE, PART, b"")[1:13] for _ in range(2000)}
    assert len(nonces) == 2000


def test_equal_plaintexts_have_unequal_ciphertexts() -> None:
    assert aead.seal(KEY, SCOPE, PART, b"secret") != aead.seal(KEY, SCOPE, PART, b"secret")


def test_what_the_cipher_cannot_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aead, "MAX_PLAINTEXT_BYTES", 5)
    aead.seal(KEY, SCOPE, PART, b"12345")
    with pytest.raises(PayloadTooLarge):
        aead.seal(KEY, SCOPE, PART, b"123456")


def test_data_keys_are_whole_and_new() -> None:
    keys = {aead.new_data_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {32}


@given(st.binary(max_size=50), st.binary(max_size=50), names, names)
def test_fingerprints_are_equal_for_equal_payloads_alone(
    one: bytes, two: bytes, part: str, other: str
) -> None:
    same = aead.fingerprint(KEY, part, one) == aead.fingerprint(KEY, other, two)
    assert same == ((one, part) == (two, other))


def test_a_fingerprint_needs_the_key() -> None:
    ours = aead.fingerprint(KEY, PART, b"a guessable payload")
    assert ours != aead.fingerprint(bytes(32), PART, b"a guessable payload")
    assert len(bytes.fromhex(ours)) == 32


def test_a_fingerprint_does_not_use_the_data_key_itself() -> None:
    """The same key for two purposes would tie their security together."""
    message = PART.encode() + b"\0" + hashlib.sha256(b"payload").digest()
    assert aead.fingerprint(KEY, PART, b"payload") != hmac.digest(KEY, message, "sha256").hex()
