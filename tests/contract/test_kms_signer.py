"""The signer over KMS. Its signatures are checked with a key of our own: moto's do not verify."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from tensafe.contracts.errors import ConfigurationError, IntegrityError, InvalidRequest, Unavailable
from tensafe.storage.kms_signer import KmsSigner
from tensafe.storage.signing import ECDSA_P256, PublicKey
from tests.contract.emulators import Wire, moto_in_process, shared_client

DIGEST = hashlib.sha256(b"a record").digest()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@pytest.fixture
def client(wire: Wire) -> Any:
    return shared_client("kms")


def new_key(client: Any, spec: str = "ECC_NIST_P256", usage: str = "SIGN_VERIFY") -> str:
    return str(client.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["KeyId"])


class Kms:
    """As AWS answers: ECDSA of the digest as it is."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.signs_with = self.key
        self.asked: list[dict[str, Any]] = []

    def get_public_key(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        der = self.key.public_key().public_bytes(serialization.Encoding.DER, form)
        return {"PublicKey": der, "KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}

    def sign(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        signature = self.signs_with.sign(asked["Message"], ec.ECDSA(Prehashed(hashes.SHA256())))
        return {"Signature": signature}


class TestAgainstAKeyOfOurOwn:
    def test_anybody_verifies_offline(self) -> None:
        signer = KmsSigner(Kms(), "key-1")
        signature = signer.sign(DIGEST)
        public = PublicKey.from_pem(signer.public_key)
        public.verify(DIGEST, signature)
        assert (signer.kind, signer.key_id) == (ECDSA_P256, public.key_id)
        with pytest.raises(IntegrityError):
            public.verify(hashlib.sha256(b"another").digest(), signature)

    def test_kms_gets_the_digest_and_is_asked_for_its_public_key_once(self) -> None:
        kms = Kms()
        signer = KmsSigner(kms, "key-1")
        assert kms.asked == []
        signer.sign(DIGEST)
        signer.sign(DIGEST)
        sign = {
            "KeyId": "key-1",
            "Message": DIGEST,
            "MessageType": "DIGEST",
            "SigningAlgorithm": "ECDSA_SHA_256",
        }
        assert kms.asked == [{"KeyId": "key-1"}, sign, sign]

    def test_a_signature_of_another_key_is_not_returned(self) -> None:
        kms = Kms()
        kms.signs_with = ec.generate_private_key(ec.SECP256R1())
        with pytest.raises(Unavailable, match="does not verify"):
            KmsSigner(kms, "key-1").sign(DIGEST)

    def test_a_check_asks_anew_and_knows_its_own_key(self) -> None:
        kms = Kms()
        signer = KmsSigner(kms, "key-1")
        signer.check()
        signer.sign(DIGEST)
        signer.check()
        assert [sorted(one) for one in kms.asked].count(["KeyId"]) == 3
        kms.key = ec.generate_private_key(ec.SECP256R1())
        with pytest.raises(IntegrityError, match="not the one"):
            signer.check()

    @pytest.mark.parametrize("digest", [b"", b"x" * 31, b"x" * 33])
    def test_nothing_but_a_digest_is_signed(self, digest: bytes) -> None:
        kms = Kms()
        with pytest.raises(InvalidRequest):
            KmsSigner(kms, "key-1").sign(digest)
        assert kms.asked == []

    @pytest.mark.parametrize("key_id", ["", "alias/ledger", "arn:aws:kms:eu-central-1:1:alias/ledger"])
    def test_no_alias_is_taken(self, key_id: str) -> None:
        with pytest.raises(ConfigurationError, match="not by an alias"):
            KmsSigner(Kms(), key_id)


class TestMoto:
    def test_its_public_key_is_read(self, client: Any) -> None:
        signer = KmsSigner(client, new_key(client))
        assert PublicKey.from_pem(signer.public_key).key_id == signer.key_id

    @pytest.mark.xfail(raises=Unavailable, strict=True, reason="moto: a DIGEST is hashed again")
    def test_its_signature_verifies(self, client: Any) -> None:
        KmsSigner(client, new_key(client)).sign(DIGEST)

    @pytest.mark.parametrize(
        ("spec", "usage"),
        [("RSA_2048", "SIGN_VERIFY"), ("ECC_NIST_P384", "SIGN_VERIFY"), ("ECC_SECG_P256K1", "SIGN_VERIFY")],
    )
    def test_a_key_of_another_kind_is_refused(self, client: Any, spec: str, usage: str) -> None:
        with pytest.raises(ConfigurationError, match="TENSAFE_SIGNING_KEY_ID"):
            KmsSigner(client, new_key(client, spec, usage)).sign(DIGEST)

    def test_a_key_that_is_not_there_is_refused(self, client: Any) -> None:
        with pytest.raises(ConfigurationError, match="TENSAFE_SIGNING_KEY_ID"):
            KmsSigner(client, "11111111-2222-3333-4444-555555555555").sign(DIGEST)

    def test_a_key_that_is_disabled_later_fails_the_check(self, client: Any, wire: Wire) -> None:
        """moto gives a disabled key's public half away, so KMS's own answer comes over the wire here."""
        signer = KmsSigner(client, new_key(client))
        signer.check()
        wire.break_next((400, {"__type": "DisabledException", "message": "is disabled"}))
        with pytest.raises(Unavailable):
            signer.check()

    def test_an_outage_is_unavailable_and_not_remembered(self, client: Any, wire: Wire) -> None:
        signer = KmsSigner(client, new_key(client))
        wire.break_next(*[EndpointConnectionError(endpoint_url="x")] * 4)
        with pytest.raises(Unavailable):
            _ = signer.public_key
        wire.break_next((400, {"__type": "AccessDeniedException", "message": "secret"}))
        with pytest.raises(Unavailable) as failure:
            _ = signer.public_key
        assert "secret" not in failure.value.message
        assert signer.public_key
