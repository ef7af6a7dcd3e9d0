"""The embedded signer: an Ed25519 key in a file, sealed under a secret of the key file.

The private key lies nowhere in clear: without the key file this one signs nothing, and whoever exchanges
it would have to be able to seal. Nothing here makes a key unless it is asked to.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tensafe.contracts.errors import ConfigurationError, InvalidRequest
from tensafe.storage.durable import sync_directory
from tensafe.storage.signing import DIGEST_BYTES, ED25519, key_id_of

FORMAT: Final = "tensafe-signing-key"
FORMAT_VERSION: Final = 1
_FILE_MAX_BYTES: Final = 8192
_NONCE_BYTES: Final = 12


class Ed25519Signer:
    """A private key in this process's memory. Implements `Signer`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        public = key.public_key()
        self._key_id = key_id_of(public, ED25519)
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        self._public_key = public.public_bytes(serialization.Encoding.PEM, form).decode()

    @property
    def kind(self) -> str:
        return ED25519

    @property
    def key_id(self) -> str:
        return self._key_id

    @property
    def public_key(self) -> str:
        return self._public_key

    def sign(self, digest: bytes) -> bytes:
        if len(digest) != DIGEST_BYTES:
            raise InvalidRequest(f"what is signed is a digest of {DIGEST_BYTES} bytes, not {len(digest)}")
        return self._key.sign(digest)

    def check(self) -> None:
        """It is in memory."""


def create_signing_key(path: Path, secret: bytes) -> str:
    """Write a new key to `path`, mode 0600, whole or not at all; its key id.

    `secret`: 32 bytes for this use alone, derived from the key file. Raises
    ConfigurationError if the file exists: a key that has signed something is never replaced.
    """
    key = Ed25519PrivateKey.generate()
    signer = Ed25519Signer(key)
    fields = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "kind": signer.kind,
        "key_id": signer.key_id,
        "public_key": signer.public_key,
        "sealed": base64.b64encode(_seal(secret, signer.key_id, key.private_bytes_raw())).decode(),
    }
    aside = path.with_name(f"{path.name}.new")
    try:
        aside.unlink(missing_ok=True)
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(json.dumps(fields, indent=2) + "\n")
            file.flush()
            os.fsync(fd)
        os.link(aside, path)  # unlike a rename it replaces nothing
        aside.unlink()
        sync_directory(path.parent)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} exists; a signing key is never overwritten") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be created: {error.strerror}") from error
    return signer.key_id


def open_signing_key(path: Path, secret: bytes) -> Ed25519Signer:
    """The signer. Raises ConfigurationError if the file is missing, damaged or another key file's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigurationError(f"there is no signing key at {path}: {error.strerror}") from error
    with open(fd, "rb") as file:
        raw = file.read(_FILE_MAX_BYTES)
    try:
        fields = json.loads(raw)
        if (fields["format"], fields["version"], fields["kind"]) != (FORMAT, FORMAT_VERSION, ED25519):
            raise ValueError("another format")
        key_id = str(fields["key_id"])
        seed = _open(secret, key_id, base64.b64decode(fields["sealed"], validate=True))
        signer = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(seed))
        if (signer.key_id, signer.public_key) != (key_id, fields["public_key"]):
            raise ValueError("not the key that it names")
    except (ValueError, KeyError, TypeError, binascii.Error, InvalidTag):
        raise ConfigurationError(
            f"{path} is damaged, or belongs to another key file; put the two back from one backup"
        ) from None
    return signer


def _seal(secret: bytes, key_id: str, seed: bytes) -> bytes:
    # A random nonce: one message is ever sealed under a key of `tensafe init`, a few after replacements.
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(secret).encrypt(nonce, seed, _associated_data(key_id))


def _open(secret: bytes, key_id: str, sealed: bytes) -> bytes:
    return AESGCM(secret).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _associated_data(key_id))


def _associated_data(key_id: str) -> bytes:
    return json.dumps([FORMAT, FORMAT_VERSION, ED25519, key_id]).encode()
