"""A manifest as a sealed blob under its domain's data key, and the item that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from tensafe.contracts.errors import IntegrityError
from tensafe.privacy.domain_records import manifest_item
from tensafe.privacy.manifest import Manifest
from tensafe.storage.ports import Items, Put
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


def holding(scope: Scope, stored: Stored) -> Put:
    """The write that makes the stored manifest the domain's; there is but one."""
    body = {"blob": stored.blob_key, "manifest_size_bytes": stored.size_bytes}
    return Put(manifest_item(scope), {**body}, 0, sealed=stored.inline)


def held_manifest(items: Items, scope: Scope) -> Stored:
    """Where the domain's manifest is. Raises IntegrityError if it has none."""
    item = items.get(manifest_item(scope))
    if item is None:
        raise IntegrityError(f"the manifest of {scope.name} is missing")
    size_bytes = int(cast(int, item.body["manifest_size_bytes"]))
    return Stored(item.sealed, cast("str | None", item.body["blob"]), size_bytes)
