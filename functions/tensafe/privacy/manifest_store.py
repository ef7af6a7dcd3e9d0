"""A manifest as a sealed blob under its domain's data key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tensafe.contracts.errors import IntegrityError
from tensafe.privacy.manifest import Manifest
from tensafe.vault.scope import Scope
from tensafe.vault.vault import Stored, Vault

MANIFEST_PART: Final = "manifest"


def store_manifest(
    vault: Vault, scope: Scope, manifest: Manifest, *, announce: Callable[[str], None] | None = None
) -> Stored:
    """Seal it under the domain's key, bound to the domain; durable when this returns.

    `announce` is told the blob's key before anything is written under it.
    """
    return vault.store(scope, MANIFEST_PART, manifest.to_bytes(), announce=announce)


def load_manifest(vault: Vault, scope: Scope, stored: Stored, digest: str) -> Manifest:
    """Open what was stored; `digest` is the manifest's, as the domain's record holds it.

    Raises IntegrityError (damaged, of another domain, or another manifest of this one), Gone after erasure.
    """
    manifest = Manifest.from_bytes(vault.load(scope, MANIFEST_PART, stored))
    if manifest.digest != digest:
        raise IntegrityError("this is not the manifest that the privacy domain was registered with")
    return manifest
