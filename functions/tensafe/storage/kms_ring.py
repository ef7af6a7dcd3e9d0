"""The key ring on AWS: data keys wrapped under one KMS key that never leaves the service.

The Encryption SDK's strict KMS keyring is used: it unwraps under the one key that it is given, whatever a
message names. Discovery keyrings, which ask whichever key the message names, are not used anywhere.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections.abc import Mapping
from typing import Any, Final

from botocore.exceptions import ClientError

from tensafe.contracts.errors import ConfigurationError, Unavailable
from tensafe.storage.aws_clients import AwsClient, aws_errors_made_ours, error_code, region_of
from tensafe.storage.checks import check_context
from tensafe.storage.encryption_sdk import MaterialProviders, SdkWrapper
from tensafe.storage.ports import UnwrapFailed

_log = logging.getLogger(__name__)
_KEY_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):[0-9]{12}:key/[A-Za-z0-9-]{1,64}")
_DOES_NOT_AUTHENTICATE: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
"""What KMS says of altered bytes, another context and another key. All else may be mended: a policy, a
disabled key, an outage; and nothing must be given up for lost because of it."""


class KmsRing:
    """The key ring port over a KMS key. Implements `KeyRing`.

    The role needs kms:GenerateDataKey and kms:Decrypt on this key alone. The encryption context reaches KMS,
    so a key policy can ask for it (`kms:EncryptionContext:tenant`); it stands in CloudTrail in clear.
    """

    def __init__(self, client: AwsClient, key_arn: str) -> None:
        """`client` is `aws_client("kms")`. ConfigurationError unless `key_arn` is a key's of its region.

        An alias will not do: it can be pointed to another key, under which nothing here would unwrap.
        """
        match = _KEY_ARN.fullmatch(key_arn)
        if match is None:
            raise ConfigurationError(
                "the KMS key is named by its ARN, arn:aws:kms:REGION:ACCOUNT:key/ID", field="kms_key_arn"
            )
        if match[1] != region_of(client):
            raise ConfigurationError(
                f"the KMS key is of {match[1]} and the service runs in {region_of(client)}",
                field="kms_key_arn",
            )
        self._kms = client
        self._client = _NotingClient(client)
        self._key_arn = key_arn
        self._wrapper = SdkWrapper(self._make_keyring)

    @property
    def key_id(self) -> str:
        return self._key_arn

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        return self._wrapper.wrap(data_key, context)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """As the port says, and Unavailable if KMS did not answer or may not use the key."""
        self._client.forget()
        try:
            return self._wrapper.unwrap(wrapped, context)
        except UnwrapFailed as refusal:
            said = self._client.said()
            if said is None or said in _DOES_NOT_AUTHENTICATE:
                raise
            _log.error("KMS did not unwrap: %s", said)
            raise Unavailable("the key service cannot use its key now; try again") from refusal

    def check(self, context: Mapping[str, str]) -> None:
        """What wrapping asks of KMS: a key of its own, which is not used here."""
        with aws_errors_made_ours("key service"):
            self._kms.generate_data_key(
                KeyId=self._key_arn, NumberOfBytes=32, EncryptionContext=check_context(context)
            )

    def _make_keyring(self, providers: MaterialProviders) -> object:
        models = importlib.import_module("aws_cryptographic_material_providers.mpl.models")
        return providers.create_aws_kms_keyring(
            input=models.CreateAwsKmsKeyringInput(kms_key_id=self._key_arn, kms_client=self._client)
        )


class _NotingClient:
    """The client, and why its last `decrypt` of this thread failed: the keyring tells only that it did."""

    def __init__(self, client: AwsClient) -> None:
        self._client = client
        self._noted = threading.local()

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)

    def decrypt(self, **request: object) -> Mapping[str, Any]:
        try:
            answer: Mapping[str, Any] = self._client.decrypt(**request)
        except ClientError as error:
            self._noted.said = error_code(error)
            raise
        except Exception as error:
            self._noted.said = type(error).__name__
            raise
        return answer

    def forget(self) -> None:
        self._noted.said = None

    def said(self) -> str | None:
        """The code of the error, or the name of its class if there was no answer; None if it succeeded."""
        said: str | None = self._noted.said
        return said
