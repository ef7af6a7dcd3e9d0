"""Blobs in a dictionary."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable

from tensafe.contracts.errors import IntegrityError
from tensafe.storage.checks import check_range
from tensafe.storage.ports import OCTETS, BlobExists, BlobInfo, BlobMissing, check_blob_key
from tensafe.storage.presign import UrlSigner


class MemoryBlobs:
    """Implements `Blobs`; `stored` may be damaged by a test."""

    def __init__(
        self,
        *,
        url_secret: bytes = b"\x07" * 32,
        base_url: str = "http://blobs.invalid",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signer = UrlSigner(url_secret, base_url, clock=clock)
        self._lock = threading.Lock()
        self.stored: dict[str, tuple[BlobInfo, bytes]] = {}

    def put(self, key: str, data: bytes) -> BlobInfo:
        info = BlobInfo(check_blob_key(key), len(data), hashlib.sha256(data).hexdigest())
        with self._lock:
            present, _ = self.stored.setdefault(key, (info, bytes(data)))
        if present != info:
            raise BlobExists(key)
        return info

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        try:
            info, data = self.stored[check_blob_key(key)]
        except KeyError as error:
            raise BlobMissing(key) from error
        end = info.size_bytes if length is None else offset + length
        if offset == 0 and end >= info.size_bytes and hashlib.sha256(data).hexdigest() != info.sha256:
            raise IntegrityError(key)
        return data[offset:end]

    def head(self, key: str) -> BlobInfo | None:
        found = self.stored.get(check_blob_key(key))
        return None if found is None else found[0]

    def delete(self, key: str) -> None:
        self.stored.pop(check_blob_key(key), None)

    def presign_get(self, key: str, *, expires_s: int, media_type: str = OCTETS) -> str:
        return self._signer.url(key, expires_s)

    def open_presigned(self, key: str, expires: int, signature: str) -> bytes:
        self._signer.verify(key, expires, signature)
        return self.get(key)
