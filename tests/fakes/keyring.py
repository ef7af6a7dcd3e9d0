"""A key ring with a key of its own, lost with the object."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tensafe.storage.checks import check_context, check_data_key
from tensafe.storage.ports import UnwrapFailed


class MemoryKeyRing:
    """Implements `KeyRing` with AES-256-GCM; two objects have different keys."""

    def __init__(self, key_id: str = "memory-key") -> None:
        self._key_id = key_id
        self._cipher = AESGCM(os.urandom(32))

    @property
    def key_id(self) -> str:
        return self._key_id

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        check_data_key(data_key)
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, data_key, _bound(context))

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        bound = _bound(context)
        try:
            return self._cipher.decrypt(wrapped[:12], wrapped[12:], bound)
        except (InvalidTag, ValueError) as error:
            raise UnwrapFailed("does not authenticate") from error

    def check(self, context: Mapping[str, str]) -> None:
        check_context(context)


def _bound(context: Mapping[str, str]) -> bytes:
    return json.dumps(check_context(context), sort_keys=True).encode()
