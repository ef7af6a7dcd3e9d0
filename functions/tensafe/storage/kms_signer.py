"""The signer on AWS: a P-256 key in KMS that never leaves it; anybody checks with its public half."""

from __future__ import annotations

import threading
from typing import Final

from botocore.exceptions import ClientError
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from tensafe.contracts.errors import ConfigurationError, IntegrityError, InvalidRequest, Unavailable
from tensafe.storage.aws_clients import AwsClient, aws_errors_made_ours, error_code
from tensafe.storage.signing import DIGEST_BYTES, ECDSA_P256, PublicKey

KEY_SPEC: Final = "ECC_NIST_P256"
_ALGORITHM: Final = "ECDSA_SHA_256"
_STORE: Final = "signing key service"
_WRONG_KEY: Final = frozenset({"NotFoundException", "UnsupportedOperationException", "InvalidArnException"})


class KmsSigner:
    """The signer port over a KMS key with key spec ECC_NIST_P256 and usage SIGN_VERIFY. Implements `Signer`.

    The role needs kms:Sign and kms:GetPublicKey on this key alone. The public key is asked for by the first
    use and kept: a KMS key's material never changes. Every signature is checked against it before it is
    returned, so that nothing is recorded which an auditor would have to refuse.
    """

    def __init__(self, client: AwsClient, key_id: str) -> None:
        """`client` is `aws_client("kms")`; `key_id` an id or ARN. Nothing is called yet."""
        if not key_id or ":alias/" in key_id or key_id.startswith("alias/"):
            raise ConfigurationError(
                "the signing key is named by its id or ARN, not by an alias, which can be pointed elsewhere",
                field="signing_key_id",
            )
        self._client = client
        self._kms_key_id = key_id
        self._lock = threading.Lock()
        self._public: PublicKey | None = None

    @property
    def kind(self) -> str:
        return ECDSA_P256

    @property
    def key_id(self) -> str:
        """As the port says. Raises Unavailable, or ConfigurationError for a key of another kind."""
        return self._key().key_id

    @property
    def public_key(self) -> str:
        """As the port says. Raises as `key_id` does."""
        return self._key().pem

    def sign(self, digest: bytes) -> bytes:
        """As the port says; Unavailable also for a signature that its own public key does not verify."""
        if len(digest) != DIGEST_BYTES:
            raise InvalidRequest(f"what is signed is a digest of {DIGEST_BYTES} bytes, not {len(digest)}")
        public = self._key()
        with aws_errors_made_ours(_STORE):
            answer = self._client.sign(
                KeyId=self._kms_key_id, Message=digest, MessageType="DIGEST", SigningAlgorithm=_ALGORITHM
            )
        signature = bytes(answer["Signature"])
        try:
            public.verify(digest, signature)
        except IntegrityError as error:
            raise Unavailable("the key service returned a signature that does not verify") from error
        return signature

    def check(self) -> None:
        """As the port says: the public half is asked for anew, which a disabled key does not give.

        Raises IntegrityError if it is another one.
        """
        if self._fetch().key_id != self.key_id:
            raise IntegrityError("the signing key is not the one that this process began with")

    def _key(self) -> PublicKey:
        with self._lock:
            if self._public is None:
                self._public = self._fetch()
            return self._public

    def _fetch(self) -> PublicKey:
        with aws_errors_made_ours(_STORE):
            try:
                answer = self._client.get_public_key(KeyId=self._kms_key_id)
            except ClientError as error:
                if error_code(error) in _WRONG_KEY:
                    raise _unusable() from error
                raise
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        try:
            key = serialization.load_der_public_key(answer["PublicKey"])
            public = PublicKey.from_pem(key.public_bytes(serialization.Encoding.PEM, form).decode())
        except (ValueError, UnsupportedAlgorithm, InvalidRequest) as error:
            raise _unusable() from error
        if public.kind != ECDSA_P256:
            raise _unusable()
        return public


def _unusable() -> ConfigurationError:
    return ConfigurationError(
        f"TENSAFE_SIGNING_KEY_ID names no KMS key with key spec {KEY_SPEC} and usage SIGN_VERIFY",
        field="signing_key_id",
    )
