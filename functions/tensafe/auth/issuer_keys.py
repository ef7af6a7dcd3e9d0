"""The signing keys of an OIDC issuer: found by discovery, cached, fetched anew for a key id not seen yet.

Sources: OpenID Connect Discovery 1.0 §4 (the issuer's document), RFC 7517 (JWK sets), RFC 7518 §3.1 and
RFC 8037 (which key an algorithm takes).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from tensafe.auth.oidc_settings import OidcSettings
from tensafe.auth.strict_json import parse_object
from tensafe.contracts.errors import Unavailable
from tensafe.contracts.network import trusted_url

log = logging.getLogger(__name__)

DOCUMENT_MAX_BYTES: Final = 64 * 1024
RETRY_S: Final = 10.0
"""Between two fetches, whatever callers present: an unknown key id costs the issuer no more than this."""
_KEYS_MAX: Final = 50
_RSA_BITS: Final = range(2048, 8193)
_UNREACHABLE: Final = "the identity provider does not answer, so this token cannot be checked; try again"
SigningKeys = Mapping[tuple[str, str], Key]
"""Public keys by (`kid`, `alg`)."""


class Documents(Protocol):
    """Fetches the issuer's documents."""

    def get(self, url: str, *, max_bytes: int) -> bytes:
        """The body of a 200, from this very URL. Raises Unavailable for all else, and over `max_bytes`."""


class IssuerKeys:
    """Finds the key that a token names. Safe to use from several threads; one of them fetches at a time.

    A set of keys is used for `cache_s` and no longer: then no token is accepted until the issuer answers.
    From half of that on it is renewed when it is next used, so that a short outage passes unnoticed.
    """

    def __init__(
        self, settings: OidcSettings, documents: Documents, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._documents = documents
        self._clock = clock
        self._fetching = threading.Lock()
        self._keys: SigningKeys = {}
        self._fetched_s = float("-inf")
        self._tried_s = float("-inf")
        self._failed = False

    @property
    def current(self) -> SigningKeys | None:
        """The cached set, if it may be used without asking the issuer; another fetch gives another object."""
        fetched_s, tried_s = self._fetched_s, self._tried_s
        age_s = self._clock() - fetched_s
        if not 0 <= age_s < self._settings.cache_s:
            return None
        due = age_s >= self._settings.cache_s / 2 and self._clock() - tried_s >= RETRY_S
        return None if due else self._keys

    def find(self, key_id: str, algorithm: str) -> Key | None:
        """The key, asking the issuer if need be; None if it has no such key.

        Raises Unavailable if there is none in the cache and the issuer does not answer.
        """
        with self._fetching:
            known = self.current
            if known is not None and (key_id, algorithm) in known:
                return known[key_id, algorithm]
            if not 0 <= self._clock() - self._tried_s < RETRY_S:
                self._fetch()
            usable = 0 <= self._clock() - self._fetched_s < self._settings.cache_s
            found = self._keys.get((key_id, algorithm)) if usable else None
            if found is None and (self._failed or not usable):
                raise Unavailable(_UNREACHABLE)
            return found

    def _fetch(self) -> None:
        self._tried_s = self._clock()
        try:
            keys = self._fetched()
        except Unavailable as error:
            self._failed = True
            log.warning("issuer keys not fetched", extra={"reason": error.message})
            return
        self._failed = False
        self._keys = keys
        self._fetched_s = self._clock()
        log.info("issuer keys fetched", extra={"keys": len(keys)})

    def _fetched(self) -> SigningKeys:
        issuer = self._settings.issuer
        where = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        document = self._object(where)
        if document.get("issuer") != issuer:
            raise Unavailable("the discovery document names another issuer than the one configured")
        uri = document.get("jwks_uri")
        if not isinstance(uri, str) or not trusted_url(uri):
            raise Unavailable("the discovery document's jwks_uri is not an https URL")
        entries = self._object(uri).get("keys")
        if not isinstance(entries, list) or len(entries) > _KEYS_MAX:
            raise Unavailable(f"the issuer's key set is not a list of at most {_KEYS_MAX} keys")
        return signing_keys(entries)

    def _object(self, url: str) -> dict[str, Any]:
        try:
            return parse_object(self._documents.get(url, max_bytes=DOCUMENT_MAX_BYTES))
        except ValueError as error:
            raise Unavailable("a document of the issuer is not a JSON object") from error


def signing_keys(entries: list[Any]) -> SigningKeys:
    """The keys of a JWK set that may sign tokens here; others are left out (RFC 7517 §5).

    Those are keys without a `kid` or with a second one's, for encryption, or of a form that no allowed
    algorithm takes; RSA below 2,048 or above 8,192 bits among them.
    """
    found: dict[tuple[str, str], Key] = {}
    ambiguous: set[tuple[str, str]] = set()
    for entry in entries:
        named = _signing_key(entry) if isinstance(entry, dict) else None
        if named is None:
            continue
        name, key = named
        if name in found:
            ambiguous.add(name)
        found[name] = key
    return {name: key for name, key in found.items() if name not in ambiguous}


def _signing_key(entry: dict[str, Any]) -> tuple[tuple[str, str], Key] | None:
    key_id = entry.get("kid")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= 256 or entry.get("use", "sig") != "sig":
        return None
    imported = _imported(entry)
    if imported is None:
        return None
    algorithm, key = imported
    return ((key_id, algorithm), key) if entry.get("alg", algorithm) == algorithm else None


def _imported(entry: dict[str, Any]) -> tuple[str, Key] | None:
    """The algorithm that the key's form is for, and its public half."""
    try:
        match entry.get("kty"), entry.get("crv"):
            case "RSA", _:
                rsa = RSAKey.import_key({name: entry[name] for name in ("kty", "n", "e")})
                return ("RS256", rsa) if rsa.public_key.key_size in _RSA_BITS else None
            case "EC", "P-256":
                return "ES256", ECKey.import_key({name: entry[name] for name in ("kty", "crv", "x", "y")})
            case "OKP", "Ed25519":
                return "EdDSA", OKPKey.import_key({name: entry[name] for name in ("kty", "crv", "x")})
    except (JoseError, ValueError, TypeError, KeyError):
        pass
    return None
