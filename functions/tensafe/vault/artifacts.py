"""Artifacts: each sealed under a data key of its own, which is sealed under its scope's key.

Deleting the artifact's sealed key makes that artifact unreadable; deleting the scope's key makes all
of them unreadable at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from tensafe.contracts.errors import Gone
from tensafe.storage.ports import BlobMissing, Blobs
from tensafe.vault import aead
from tensafe.vault.scope import Scope
from tensafe.vault.vault import Vault


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """What a record must keep to read the artifact again."""

    blob_key: str
    sealed_key: bytes
    size_bytes: int
    sha256: str
    """Of the stored ciphertext: checks a copy without the key."""


class Artifacts:
    """Writes, reads and deletes sealed artifacts."""

    def __init__(self, vault: Vault, blobs: Blobs) -> None:
        self._vault = vault
        self._blobs = blobs

    def write(
        self, scope: Scope, part: str, data: bytes, *, announce: Callable[[str], None] | None = None
    ) -> ArtifactRef:
        """Seal `data` durably; `part` (such as `ckpt/weights/final`) is bound to key and content.

        `announce` is called with the blob's key before anything is written under it.
        """
        key = aead.new_data_key()
        blob_key = f"artifacts/{os.urandom(2).hex()}/{os.urandom(16).hex()}"
        if announce is not None:
            announce(blob_key)
        info = self._blobs.put(blob_key, aead.seal(key, scope, part, data))
        return ArtifactRef(blob_key, self._vault.seal(scope, f"{part}/key", key), len(data), info.sha256)

    def read(self, scope: Scope, part: str, ref: ArtifactRef) -> bytes:
        """The artifact in clear. Raises Gone after erasure, IntegrityError if altered."""
        key = self._vault.open(scope, f"{part}/key", ref.sealed_key)
        try:
            sealed = self._blobs.get(ref.blob_key)
        except BlobMissing:
            raise Gone(f"{part} has been deleted") from None
        return aead.open_sealed(key, scope, part, sealed)

    def delete(self, ref: ArtifactRef) -> None:
        """Delete the ciphertext; the record that held the sealed key must go first."""
        self._blobs.delete(ref.blob_key)
