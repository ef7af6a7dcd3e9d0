"""URLs that carry their own permission: a path, an expiry and an HMAC over both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, hmac

from tensafe.contracts.errors import ConfigurationError, InvalidRequest, Unauthenticated
from tensafe.storage.ports import OCTETS, check_blob_key

EXPIRES_MAX_S: Final = 7 * 24 * 3600
SECRET_MIN_BYTES: Final = 32
_DOMAIN: Final = b"tensafe presigned GET v1"


def check_url_lifetime(expires_s: int) -> None:
    """InvalidRequest unless a URL lives 1 s to 7 days."""
    if not 1 <= expires_s <= EXPIRES_MAX_S:
        raise InvalidRequest(f"a URL lives 1 to {EXPIRES_MAX_S} s, not {expires_s}", field="expires_s")


class UrlSigner:
    """Signs and verifies `{base_url}/{key}?expires={unix seconds}&signature={hex}` with HMAC-SHA256.

    A media type other than octets stands before the signature, as `&type=`, and is signed too.
    """

    def __init__(self, secret: bytes, base_url: str, *, clock: Callable[[], float] = time.time) -> None:
        if len(secret) < SECRET_MIN_BYTES:
            raise ConfigurationError(
                f"the secret that signs URLs needs {SECRET_MIN_BYTES} random bytes or more",
                field="url_secret",
            )
        self._secret = secret
        self._base_url = base_url.rstrip("/")
        self._clock = clock

    def url(self, key: str, expires_s: int, media_type: str = OCTETS) -> str:
        """The URL of a blob; InvalidRequest unless it lives 1 s to 7 days."""
        check_blob_key(key)
        check_url_lifetime(expires_s)
        expires = int(self._clock()) + expires_s
        signature = self._mac(key, expires, media_type).finalize().hex()
        named = "" if media_type == OCTETS else f"&type={quote(media_type, safe='')}"
        # Every character of the key grammar may stand in a path as it is.
        return f"{self._base_url}/{key}?expires={expires}{named}&signature={signature}"

    def verify(self, key: str, expires: int, signature: str, media_type: str = OCTETS) -> None:
        """Unauthenticated if the signature is not ours (compared in constant time) or has expired."""
        check_blob_key(key)
        try:
            self._mac(key, expires, media_type).verify(bytes.fromhex(signature))
        except (InvalidSignature, ValueError) as error:
            raise Unauthenticated("the URL's signature does not verify", field="signature") from error
        if expires <= self._clock():
            raise Unauthenticated("the URL has expired; ask for a new one", field="expires")

    def _mac(self, key: str, expires: int, media_type: str) -> hmac.HMAC:
        mac = hmac.HMAC(self._secret, hashes.SHA256())
        parts = [_DOMAIN, key.encode(), str(expires).encode()]
        mac.update(b"\n".join(parts if media_type == OCTETS else [*parts, media_type.encode()]))
        return mac
