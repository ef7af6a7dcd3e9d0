"""AES-256-GCM with bound associated data; the one place where bytes are sealed and opened.

A sealed message is `version (1 byte, 0x01) || nonce (12 bytes) || ciphertext and tag`. The nonce is
random, which NIST SP 800-38D section 8.3 allows for at most 2^32 messages under one key; a scope's
key seals far fewer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tensafe.contracts.errors import IntegrityError, PayloadTooLarge
from tensafe.vault.scope import Scope

DATA_KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = len(_VERSION) + _NONCE_BYTES + _TAG_BYTES
MAX_PLAINTEXT_BYTES: Final = 2**31 - 1 - OVERHEAD_BYTES
"""The limit of one call into the cipher; a larger artifact is refused."""


def new_data_key() -> bytes:
    """32 bytes from the operating system's CSPRNG."""
    return os.urandom(DATA_KEY_BYTES)


def seal(key: bytes, scope: Scope, part: str, plaintext: bytes) -> bytes:
    """Encrypt `plaintext`, bound to its scope and `part` (what it is, such as `op/7/sample/payload`)."""
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise PayloadTooLarge(f"{part} has {len(plaintext)} bytes; the limit is {MAX_PLAINTEXT_BYTES}")
    nonce = os.urandom(_NONCE_BYTES)
    return _VERSION + nonce + AESGCM(key).encrypt(nonce, plaintext, _associated_data(scope, part))


def open_sealed(key: bytes, scope: Scope, part: str, sealed: bytes) -> bytes:
    """Decrypt and authenticate. Raises IntegrityError; never returns unauthenticated bytes."""
    if len(sealed) < OVERHEAD_BYTES or sealed[:1] != _VERSION:
        raise IntegrityError(f"{part} is not a sealed message of this version")
    nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    try:
        return AESGCM(key).decrypt(nonce, body, _associated_data(scope, part))
    except InvalidTag:
        raise IntegrityError(f"{part} does not authenticate under its scope's key") from None


def fingerprint(key: bytes, part: str, plaintext: bytes) -> str:
    """Keyed digest to recognise a repeated payload; a plain hash would confirm guesses of it."""
    mac_key = HKDFExpand(algorithm=SHA256(), length=32, info=b"tensafe/fingerprint/1").derive(key)
    return hmac.digest(mac_key, part.encode() + b"\0" + hashlib.sha256(plaintext).digest(), "sha256").hex()


def _associated_data(scope: Scope, part: str) -> bytes:
    return json.dumps([1, scope.tenant, scope.name, part], separators=(",", ":")).encode()
