"""Wrapping of data keys by the AWS Encryption SDK, whichever keyring holds the wrapping key."""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from tensafe.contracts.errors import Unavailable
from tensafe.storage.checks import check_context, check_data_key
from tensafe.storage.ports import UnwrapFailed

FRAME_BYTES: Final = 2**20
"""A data key fits into one frame of any length; long messages are faster in frames of 1 MiB than of 4 KiB."""


class MaterialProviders(Protocol):
    """The part of the SDK's material providers client that makes the keyrings in use here."""

    def create_raw_aes_keyring(self, input: object) -> object: ...

    def create_aws_kms_keyring(self, input: object) -> object: ...


class SdkWrapper:
    """Encrypts data keys as Encryption SDK messages, with the encryption context compared whole.

    The committing suite without signatures (0x0478) is used: one key both wraps and unwraps, so a
    signature would prove nothing more. The SDK costs 0.8 s (0.3 s with byte code) and 46 MB: it
    is loaded by the first use.
    """

    def __init__(self, make_keyring: Callable[[MaterialProviders], object]) -> None:
        """`make_keyring` gets the SDK's material providers client and returns a keyring."""
        self._make_keyring = make_keyring
        self._loading = threading.Lock()
        self._loaded: tuple[Any, object, object] | None = None

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        """The message that holds `data_key`; InvalidRequest, or Unavailable if the keyring failed."""
        check_data_key(data_key)
        pairs = check_context(context)
        client, keyring, suite = self._sdk()
        try:
            message, _ = client.encrypt(
                source=data_key,
                keyring=keyring,
                encryption_context=pairs,
                algorithm=suite,
                frame_length=FRAME_BYTES,
            )
        except Exception as error:
            raise Unavailable("the key ring did not wrap the data key") from error
        return bytes(message)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The data key; UnwrapFailed unless message, key and context are exactly those of `wrap`."""
        pairs = check_context(context)
        client, keyring, _ = self._sdk()
        source = io.BytesIO(wrapped)
        try:
            # Not `client.decrypt`, and no `with`: both log a page of tracebacks for each refusal.
            decryptor = client.stream(
                mode="decrypt", source=source, keyring=keyring, encryption_context=pairs
            )
            data_key = bytes(decryptor.read())
            stored = dict(decryptor.header.encryption_context)
        except Exception as error:  # the parser raises whatever altered bytes make it raise
            raise UnwrapFailed("the wrapped key does not authenticate here") from error
        # The SDK is content with a part of the context, and ignores what follows the message.
        if stored != pairs or source.read(1):
            raise UnwrapFailed("the wrapped key belongs to another encryption context or was altered")
        return data_key

    def _sdk(self) -> tuple[Any, object, object]:
        with self._loading:
            if self._loaded is None:
                sdk = importlib.import_module("aws_encryption_sdk")
                identifiers = importlib.import_module("aws_encryption_sdk.identifiers")
                mpl = importlib.import_module("aws_cryptographic_material_providers.mpl")
                config = importlib.import_module("aws_cryptographic_material_providers.mpl.config")
                client = sdk.EncryptionSDKClient(
                    commitment_policy=sdk.CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT,
                    max_encrypted_data_keys=1,
                )
                providers = mpl.AwsCryptographicMaterialProviders(config=config.MaterialProvidersConfig())
                suite = identifiers.AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY
                self._loaded = (client, self._make_keyring(providers), suite)
            return self._loaded
