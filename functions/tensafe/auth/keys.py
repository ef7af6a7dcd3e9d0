"""API keys: made from the CSPRNG, stored as a hash, looked up by prefix, compared in constant time.

A key is `tml-<key id, 16 hex digits>-<secret, 43 base64url characters = 256 bits>`; the official
SDK sends nothing that does not begin with `tml-`. The secret has full entropy, so one SHA-256 is the
right hash. A found key is remembered for `cache_s`, the longest time that a revocation can take.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, cast

from tensafe.auth.principal import AccessScope, Principal, check_tenant, parse_scope
from tensafe.contracts.errors import InvalidRequest, NotFound, Unauthenticated
from tensafe.storage.ports import ConditionFailed, Item, Items, JsonValue, Key, Put

_FORM: Final = re.compile(r"tml-([0-9a-f]{16})-([A-Za-z0-9_-]{43})")
_LISTING: Final = "apikeys"
_REJECTED: Final = "this API key is not accepted; create one with `tensafe keys create`"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key, without its secret."""

    key_id: str
    tenant: str
    scopes: tuple[AccessScope, ...]
    label: str
    created_s: int
    expires_s: int | None
    revoked_s: int | None

    def usable(self, now_s: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_s is None and (self.expires_s is None or now_s < self.expires_s)


class ApiKeys:
    """Creates, lists, revokes and authenticates API keys."""

    def __init__(self, items: Items, *, cache_s: float = 0.5, clock: Callable[[], float] = time.time) -> None:
        self._items = items
        self._cache_s = cache_s
        self._clock = clock
        self._lock = threading.Lock()
        self._cache: dict[str, tuple[float, Principal]] = {}

    def create(
        self, tenant: str, scopes: Iterable[str], *, label: str = "", lifetime_s: int | None = None
    ) -> tuple[str, ApiKey]:
        """A new key and its record; the key itself is returned here and never again."""
        check_tenant(tenant)
        granted = tuple(sorted({parse_scope(scope) for scope in scopes}))
        if not granted:
            raise InvalidRequest("give at least one scope", field="scope")
        if lifetime_s is not None and lifetime_s < 1:
            raise InvalidRequest("a lifetime is 1 second or more", field="lifetime_s")
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        now_s = int(self._clock())
        expires_s = now_s + lifetime_s if lifetime_s is not None else None
        record = ApiKey(key_id, tenant, granted, label[:100], now_s, expires_s, None)
        self._items.write(
            [
                Put(_key(key_id), _to_body(record, _digest(secret)), 0),
                Put(Key(_LISTING, f"{tenant}/{key_id}"), {}, 0),
            ]
        )
        return f"tml-{key_id}-{secret}", record

    def list(self, tenant: str | None = None) -> list[ApiKey]:
        """All keys, or one tenant's; revoked and expired ones included."""
        first, last = (f"{tenant}/", f"{tenant}/~") if tenant else ("", None)
        entries = self._items.query(_LISTING, first=first, last=last, limit=10_000)
        found = (self._items.get(_key(entry.key.sort.rsplit("/", 1)[1])) for entry in entries)
        return [_from_item(item) for item in found if item is not None]

    def revoke(self, key_id: str) -> ApiKey:
        """Refuse the key from now on; in other processes within `cache_s`. Raises NotFound."""
        while True:
            try:
                item = self._items.get(_key(key_id))
            except InvalidRequest:
                item = None
            if item is None:
                raise NotFound("no such key id; `tensafe keys list` shows them")
            record = _from_item(item)
            if record.revoked_s is not None:
                return record
            revoked = replace(record, revoked_s=int(self._clock()))
            try:
                self._items.write([Put(item.key, _to_body(revoked, str(item.body["sha256"])), item.version)])
            except ConditionFailed:
                continue
            with self._lock:
                self._cache.clear()
            return revoked

    def authenticate(self, presented: str | None) -> Principal:
        """The key's principal. Raises Unauthenticated with one message for every cause."""
        if presented is None or len(presented) > 256:
            raise Unauthenticated(_REJECTED)
        form = _FORM.fullmatch(presented)
        if form is None:
            raise Unauthenticated(_REJECTED)
        digest = _digest(form[2])
        cache_key = f"{form[1]}/{digest}"
        now = self._clock()
        with self._lock:
            cached = self._cache.get(cache_key)
        if cached is not None and 0 <= now - cached[0] < self._cache_s:
            return cached[1]
        item = self._items.get(_key(form[1]))
        stored = str(item.body["sha256"]) if item else "0" * 64
        matches = hmac.compare_digest(stored, digest)
        if item is None or not matches or not _from_item(item).usable(now):
            raise Unauthenticated(_REJECTED)
        record = _from_item(item)
        principal = Principal(record.tenant, frozenset(record.scopes), record.key_id)
        with self._lock:
            if len(self._cache) > 10_000:
                self._cache.clear()
            self._cache[cache_key] = (now, principal)
        return principal


def _key(key_id: str) -> Key:
    return Key(f"apikey/{key_id}", "meta")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _to_body(record: ApiKey, digest: str) -> dict[str, JsonValue]:
    return {
        "tenant": record.tenant,
        "scopes": [scope.value for scope in record.scopes],
        "label": record.label,
        "created_s": record.created_s,
        "expires_s": record.expires_s,
        "revoked_s": record.revoked_s,
        "sha256": digest,
    }


def _from_item(item: Item) -> ApiKey:
    body = item.body
    return ApiKey(
        item.key.partition.split("/", 1)[1],
        str(body["tenant"]),
        tuple(AccessScope(str(scope)) for scope in cast("list[JsonValue]", body["scopes"])),
        str(body["label"]),
        cast(int, body["created_s"]),
        cast("int | None", body["expires_s"]),
        cast("int | None", body["revoked_s"]),
    )
