"""Data keys and sealed payloads: creates, caches and forgets keys; keeps large payloads in blobs."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tensafe.contracts.errors import Gone
from tensafe.storage.ports import BlobMissing, Blobs, ConditionFailed, Items, KeyRing, Put
from tensafe.vault import aead, forgetting
from tensafe.vault.scope import Scope

INLINE_MAX_BYTES: Final = 64 * 1024
"""Payloads up to this size travel inside an item; larger ones become blobs (design section 4)."""
_CACHED_KEYS: Final = 4096


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a sealed payload is: inside its item, or in the blob named here."""

    inline: bytes = b""
    blob_key: str | None = None
    size_bytes: int = 0


class Vault:
    """Seals and opens what belongs to a scope. Thread-safe.

    Holds a data key for `cache_s`, and not for longer than a tick of `forgetting` beyond that.
    """

    def __init__(
        self,
        items: Items,
        blobs: Blobs,
        keyring: KeyRing,
        *,
        cache_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._items = items
        self._blobs = blobs
        self._keyring = keyring
        self._cache_s = cache_s
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: OrderedDict[Scope, tuple[float, bytes]] = OrderedDict()
        self._forgotten = 0

    def new_key(self, scope: Scope) -> Put:
        """A write that stores a fresh wrapped key; put it in the transaction that creates the scope."""
        wrapped = self._keyring.wrap(aead.new_data_key(), scope.context())
        return Put(scope.key_item, {"key_id": self._keyring.key_id}, 0, sealed=wrapped)

    def begin(self, scope: Scope) -> Put:
        """As `new_key`, and hold the key: the scope's first contents can be sealed before the write.

        Whoever does so needs no right to unwrap. `forget` it if the write does not come about.
        """
        key = aead.new_data_key()
        wrapped = self._keyring.wrap(key, scope.context())
        with self._lock:
            self._keys[scope] = (self._clock(), key)
        forgetting.WATCH.add(self)
        return Put(scope.key_item, {"key_id": self._keyring.key_id}, 0, sealed=wrapped)

    def ensure_key(self, scope: Scope) -> None:
        """Create the scope's key unless it has one."""
        if self._items.get(scope.key_item) is None:
            try:
                self._items.write([self.new_key(scope)])
            except ConditionFailed:
                return  # somebody else created it first; theirs is the key

    def seal(self, scope: Scope, part: str, plaintext: bytes) -> bytes:
        """Encrypt under the scope's key. Raises Gone after erasure."""
        return aead.seal(self._key(scope), scope, part, plaintext)

    def open(self, scope: Scope, part: str, sealed: bytes) -> bytes:
        """Decrypt. Raises IntegrityError, or Gone after erasure."""
        return aead.open_sealed(self._key(scope), scope, part, sealed)

    def fingerprint(self, scope: Scope, part: str, plaintext: bytes) -> str:
        """Keyed digest of a payload, equal for equal payloads of one scope."""
        return aead.fingerprint(self._key(scope), part, plaintext)

    def store(
        self, scope: Scope, part: str, plaintext: bytes, *, announce: Callable[[str], None] | None = None
    ) -> Stored:
        """Seal; keep it inline if small, else write a blob durably before returning.

        `announce` is called with the blob's key before anything is written under it.
        """
        sealed = self.seal(scope, part, plaintext)
        if len(plaintext) <= INLINE_MAX_BYTES:
            return Stored(inline=sealed, size_bytes=len(plaintext))
        # A name of its own per attempt: a retry seals with another nonce, so its bytes differ.
        blob_key = f"sealed/{os.urandom(2).hex()}/{os.urandom(16).hex()}"
        if announce is not None:
            announce(blob_key)
        self._blobs.put(blob_key, sealed)
        return Stored(blob_key=blob_key, size_bytes=len(plaintext))

    def load(self, scope: Scope, part: str, stored: Stored) -> bytes:
        """Open what `store` kept. Raises Gone if the blob was erased."""
        if stored.blob_key is None:
            return self.open(scope, part, stored.inline)
        try:
            return self.open(scope, part, self._blobs.get(stored.blob_key))
        except BlobMissing:
            raise Gone(f"{part} has been erased") from None

    def discard(self, stored: Stored) -> None:
        """Delete the blob behind a payload that nothing refers to any more."""
        if stored.blob_key is not None:
            self._blobs.delete(stored.blob_key)

    def forget(self, scope: Scope) -> None:
        """Drop the cached key; the wrapped one is deleted by whoever erases the scope."""
        with self._lock:
            self._keys.pop(scope, None)
            self._forgotten += 1

    def forget_stale(self) -> None:
        """Drop the keys whose time is over."""
        oldest = self._clock() - self._cache_s
        with self._lock:
            for scope in [scope for scope, (since, _) in self._keys.items() if since <= oldest]:
                del self._keys[scope]

    def _key(self, scope: Scope) -> bytes:
        now = self._clock()
        with self._lock:
            cached = self._keys.get(scope)
            if cached is not None and now - cached[0] < self._cache_s:
                return cached[1]
            forgotten = self._forgotten
        item = self._items.get(scope.key_item)
        if item is None:
            self.forget(scope)
            raise Gone(f"{scope.name} has been erased, or never existed")
        key = self._keyring.unwrap(item.sealed, scope.context())
        with self._lock:
            if self._forgotten != forgotten:
                return key  # read before somebody erased a scope, perhaps this one: not to be kept
            self._keys[scope] = (now, key)
            self._keys.move_to_end(scope)
            while len(self._keys) > _CACHED_KEYS:
                self._keys.popitem(last=False)
        forgetting.WATCH.add(self)
        return key
