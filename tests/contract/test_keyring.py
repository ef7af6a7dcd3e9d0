"""The key ring port on its adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensafe.storage.keyfile import KeyFileRing, create_key_file
from tensafe.storage.ports import KeyRing, UnwrapFailed
from tests.contract.keyring_suite import CONTEXT, KeyRingSuite
from tests.fakes import MemoryKeyRing


class TestKeyFileRing(KeyRingSuite):
    @pytest.fixture
    def ring(self, tmp_path: Path) -> KeyRing:
        create_key_file(tmp_path / "key.json")
        return KeyFileRing(tmp_path / "key.json")

    @pytest.fixture
    def other_ring(self, tmp_path: Path) -> KeyRing:
        create_key_file(tmp_path / "other.json")
        return KeyFileRing(tmp_path / "other.json")

    def test_the_file_opened_again_unwraps(self, ring: KeyRing, tmp_path: Path) -> None:
        wrapped = ring.wrap(b"k" * 32, CONTEXT)
        again = KeyFileRing(tmp_path / "key.json")
        assert again.unwrap(wrapped, CONTEXT) == b"k" * 32
        assert again.key_id == ring.key_id

    def test_a_refusal_is_quiet(self, ring: KeyRing, caplog: pytest.LogCaptureFixture) -> None:
        """The SDK's own call logs a page of tracebacks for each."""
        wrapped = ring.wrap(b"k" * 32, CONTEXT)
        for altered in (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), wrapped[:50]):
            with pytest.raises(UnwrapFailed):
                ring.unwrap(altered, CONTEXT)
        assert caplog.records == []

    def test_the_message_is_of_the_encryption_sdk(self, ring: KeyRing, tmp_path: Path) -> None:
        """Another program with the key can read it: the SDK alone, without this adapter."""
        import base64
        import json

        import aws_encryption_sdk as sdk
        from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
        from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
        from aws_cryptographic_material_providers.mpl.models import (
            AesWrappingAlg,
            CreateRawAesKeyringInput,
        )

        fields = json.loads((tmp_path / "key.json").read_text())
        keyring = AwsCryptographicMaterialProviders(MaterialProvidersConfig()).create_raw_aes_keyring(
            CreateRawAesKeyringInput(
                key_namespace="tensafe",
                key_name=fields["key_id"],
                wrapping_key=base64.b64decode(fields["key"]),
                wrapping_alg=AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
            )
        )
        data_key, header = sdk.EncryptionSDKClient().decrypt(
            source=ring.wrap(b"k" * 32, CONTEXT), keyring=keyring, encryption_context=CONTEXT
        )
        assert data_key == b"k" * 32
        assert header.algorithm.name == "AES_256_GCM_HKDF_SHA512_COMMIT_KEY"
        assert header.frame_length == 2**20


class TestMemoryKeyRing(KeyRingSuite):
    @pytest.fixture
    def ring(self) -> KeyRing:
        return MemoryKeyRing()

    @pytest.fixture
    def other_ring(self) -> KeyRing:
        return MemoryKeyRing("another-key")
