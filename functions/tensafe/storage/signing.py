"""The signer port and the public half of it: who vouches for a record, checked by anybody.

What is signed is always a SHA-256 digest of 32 bytes, so that a key that never leaves KMS fits (key spec
ECC_NIST_P256, algorithm ECDSA_SHA_256, message type DIGEST) as well as a local Ed25519 key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from tensafe.contracts.errors import IntegrityError, InvalidRequest

ED25519: Final = "ed25519"
"""Ed25519 (RFC 8032, pure) over the digest's 32 bytes."""
ECDSA_P256: Final = "ecdsa-p256-sha256"
"""ECDSA over P-256 of the digest; the signature is DER, as KMS returns it."""
DIGEST_BYTES: Final = 32
SIGNATURE_MAX_BYTES: Final = 80
PEM_MAX_CHARS: Final = 4096


class Signer(Protocol):
    """Signs digests with a key that never leaves it."""

    @property
    def kind(self) -> str:
        """`ed25519` or `ecdsa-p256-sha256`."""

    @property
    def key_id(self) -> str:
        """Names the public key: its kind and half of its fingerprint (`key_id_of`)."""

    @property
    def public_key(self) -> str:
        """The public key as PEM (SubjectPublicKeyInfo)."""

    def sign(self, digest: bytes) -> bytes:
        """Signature of a SHA-256 digest (32 bytes). Raises Unavailable if the key cannot be reached."""

    def check(self) -> None:
        """Ask whether the key can be used, signing nothing.

        Raises Unavailable, ConfigurationError, or IntegrityError if it is another one than before.
        """


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key that signatures are held to."""

    kind: str
    key_id: str
    pem: str
    _verify: Callable[[bytes, bytes], None]

    @classmethod
    def from_pem(cls, pem: str) -> PublicKey:
        """Raises InvalidRequest for anything but one Ed25519 or P-256 public key."""
        try:
            key = serialization.load_pem_public_key(pem[:PEM_MAX_CHARS].encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidRequest("not a public key in PEM form", field="public_key") from error
        if isinstance(key, Ed25519PublicKey):
            return cls(ED25519, key_id_of(key, ED25519), _pem(key), _ed25519(key))
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return cls(ECDSA_P256, key_id_of(key, ECDSA_P256), _pem(key), _ecdsa(key))
        raise InvalidRequest(f"the public key is neither {ED25519} nor {ECDSA_P256}", field="public_key")

    def verify(self, digest: bytes, signature: bytes) -> None:
        """Raises IntegrityError unless the key signed this digest."""
        if len(digest) != DIGEST_BYTES:
            raise IntegrityError(f"what is signed is a digest of {DIGEST_BYTES} bytes, not {len(digest)}")
        try:
            self._verify(signature, digest)
        except InvalidSignature:
            raise IntegrityError(f"the signature is not one of key {self.key_id}") from None


def key_id_of(key: Ed25519PublicKey | ec.EllipticCurvePublicKey, kind: str) -> str:
    """`<kind>-` and 128 bits of SHA-256 of the key's DER form: enough to choose a key by."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"{kind}-{hashlib.sha256(der).hexdigest()[:32]}"


def _pem(key: Ed25519PublicKey | ec.EllipticCurvePublicKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def _ed25519(key: Ed25519PublicKey) -> Callable[[bytes, bytes], None]:
    return key.verify


def _ecdsa(key: ec.EllipticCurvePublicKey) -> Callable[[bytes, bytes], None]:
    algorithm = ec.ECDSA(Prehashed(hashes.SHA256()))
    return lambda signature, digest: key.verify(signature, digest, algorithm)
