"""Signers whose keys are lost with the object: one as on one machine, one with KMS's kind of key."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from tensafe.storage.signing import ECDSA_P256, key_id_of
from tensafe.storage.signing_key import Ed25519Signer


def memory_signer() -> Ed25519Signer:
    return Ed25519Signer(Ed25519PrivateKey.generate())


class P256Signer:
    """Implements `Signer` as an adapter over kms:Sign with MessageType DIGEST would."""

    kind = ECDSA_P256

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.key_id = key_id_of(self._key.public_key(), ECDSA_P256)
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public_key = self._key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    def sign(self, digest: bytes) -> bytes:
        return self._key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))

    def check(self) -> None:
        """It is in memory."""
