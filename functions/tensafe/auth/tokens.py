"""JWTs of one OIDC issuer: what is checked before a token says who is calling.

In order: size and form; the header (algorithm allowed, key named, nothing critical that is not
understood); the signature, under a key of the issuer's own set, never one that the token brings (`jwk`,
`jku`, `x5c`, `x5u` are not read); then the claims. Whatever is wrong is told with one message, and which
check failed in the log alone. Sources: RFC 7515, RFC 7519 §4.1, RFC 8725 (best practices), RFC 9068.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import Key

from tensafe.auth.issuer_keys import IssuerKeys, SigningKeys
from tensafe.auth.oidc_settings import OidcSettings
from tensafe.auth.principal import AccessScope, Principal, check_tenant
from tensafe.auth.strict_json import parse_object
from tensafe.contracts.errors import InvalidRequest, Unauthenticated

log = logging.getLogger(__name__)

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
TOKEN_MAX_CHARS: Final = 8192
_HEADER_MAX_CHARS: Final = 1024
_SIGNATURE_MAX_CHARS: Final = 1400
_FORM: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_TYPES: Final = (None, "jwt", "at+jwt", "application/at+jwt")
_AUDIENCES_MAX: Final = 50
_REJECTED: Final = "this token is not accepted; get a new one from the identity provider"
_CACHED_MAX: Final = 10_000
_TIME_MAX_S: Final = 2**53


# `EdDSA` may mean two curves (RFC 9864): here it is Ed25519 alone, as the key's own form says.
warnings.filterwarnings("ignore", "EdDSA is deprecated", SecurityWarning)


class _KeyWanted(Exception):
    """The key is not in the cache: the issuer has to be asked."""


class _Refused(Exception):
    """The check that failed, in constant words."""


class Tokens:
    """Verifies tokens. A verified one is remembered until it ends or the issuer's keys are fetched anew."""

    def __init__(
        self, settings: OidcSettings, keys: IssuerKeys, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._lock = threading.Lock()
        self._verified: dict[bytes, Principal] = {}
        self._verified_with: SigningKeys | None = None

    def recognise(self, token: str) -> Principal | None:
        """The token's principal, without asking the issuer; None if it has to be asked.

        Raises Unauthenticated.
        """
        try:
            return self._principal(token, self._cached_key)
        except _KeyWanted:
            return None

    def authenticate(self, token: str) -> Principal:
        """The token's principal; may ask the issuer. Raises Unauthenticated, Unavailable."""
        return self._principal(token, self._keys.find)

    def check_running(self, principal: Principal) -> None:
        """Raise Unauthenticated once the token has ended."""
        if principal.expires_s is None or self._clock() >= principal.expires_s:
            raise Unauthenticated(_REJECTED)

    def _cached_key(self, key_id: str, algorithm: str) -> Key | None:
        known = self._keys.current
        found = known.get((key_id, algorithm)) if known is not None else None
        if found is None:
            raise _KeyWanted
        return found

    def _principal(self, token: str, key_of: Callable[[str, str], Key | None]) -> Principal:
        digest = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
        known = self._remembered(digest)
        if known is not None:
            self.check_running(known)
            return known
        try:
            claims = _verified_claims(token, key_of)
            principal = self._of_claims(claims)
        except _Refused as refused:
            log.info("token refused", extra={"reason": str(refused)})
            raise Unauthenticated(_REJECTED) from None
        self._remember(digest, principal)
        return principal

    def _remembered(self, digest: bytes) -> Principal | None:
        current = self._keys.current
        with self._lock:
            return self._verified.get(digest) if current is self._verified_with else None

    def _remember(self, digest: bytes, principal: Principal) -> None:
        current = self._keys.current
        if current is None:
            return
        with self._lock:
            if current is not self._verified_with or len(self._verified) >= _CACHED_MAX:
                self._verified, self._verified_with = {}, current
            self._verified[digest] = principal

    def _of_claims(self, claims: dict[str, Any]) -> Principal:
        settings = self._settings
        if claims.get("iss") != settings.issuer:
            raise _Refused("issuer")
        if settings.audience not in _texts(claims.get("aud"), separator=None)[:_AUDIENCES_MAX]:
            raise _Refused("audience")
        expires_s = self._check_times(claims)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject:
            raise _Refused("subject")
        try:
            tenant = check_tenant(str(claims.get(settings.tenant_claim, "")))
        except InvalidRequest:
            raise _Refused("tenant claim") from None
        names = _texts(claims.get(settings.scope_claim), separator=" ")
        # The issuer's other scopes (openid, profile) mean nothing here.
        scopes = frozenset(scope for scope in AccessScope if scope.value in names)
        if not scopes:
            raise _Refused("scope claim")
        key_id = hashlib.sha256(f"{settings.issuer}\0{subject}".encode()).hexdigest()[:16]
        return Principal(tenant, scopes, key_id, expires_s)

    def _check_times(self, claims: dict[str, Any]) -> float:
        """When the token ends, leeway included."""
        now, leeway_s = self._clock(), self._settings.leeway_s
        expires_s = _seconds(claims, "exp")
        if expires_s is None:
            raise _Refused("no expiry")
        if now >= expires_s + leeway_s:
            raise _Refused("expired")
        for name in ("nbf", "iat"):
            begins_s = _seconds(claims, name)
            if begins_s is not None and now < begins_s - leeway_s:
                raise _Refused("not valid yet")
        return expires_s + leeway_s


def _verified_claims(token: str, key_of: Callable[[str, str], Key | None]) -> dict[str, Any]:
    form = _FORM.fullmatch(token) if len(token) <= TOKEN_MAX_CHARS else None
    if form is None or len(form[1]) > _HEADER_MAX_CHARS or len(form[3]) > _SIGNATURE_MAX_CHARS:
        raise _Refused("form")
    key_id, algorithm = _named_key(_object(form[1]))
    key = key_of(key_id, algorithm)
    if key is None:
        raise _Refused("key id")
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    registry.max_header_length = _HEADER_MAX_CHARS
    try:
        jws.deserialize_compact(token, key, registry=registry)
    except (JoseError, ValueError, TypeError):
        raise _Refused("signature") from None
    return _object(form[2])


def _named_key(header: dict[str, Any]) -> tuple[str, str]:
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ")
    if algorithm not in ALGORITHMS:
        raise _Refused("algorithm")
    if not isinstance(key_id, str) or not key_id:
        raise _Refused("no key id")
    if "crit" in header or "b64" in header:
        raise _Refused("critical header")
    if (kind.lower() if isinstance(kind, str) else kind) not in _TYPES:
        raise _Refused("type")
    return key_id, str(algorithm)


def _object(segment: str) -> dict[str, Any]:
    try:
        return parse_object(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except ValueError:
        raise _Refused("not a JSON object without repeated members") from None


def _texts(value: Any, *, separator: str | None) -> list[str]:  # noqa: ANN401 - a claim may be anything
    if isinstance(value, str):
        return [value] if separator is None else value.split(separator)
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _seconds(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _TIME_MAX_S:
        raise _Refused(f"{name} is not a number")
    return float(value)
