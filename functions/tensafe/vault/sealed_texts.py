"""A few texts sealed in one item, such as a certificate with its key, for tasks without a disk that lasts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from tensafe.contracts.errors import Conflict, IntegrityError, PayloadTooLarge
from tensafe.storage.ports import ConditionFailed, Items, Key, Put
from tensafe.vault.scope import Scope
from tensafe.vault.vault import INLINE_MAX_BYTES, Vault

_SORT: Final = "texts"


def keep(
    items: Items, vault: Vault, scope: Scope, texts: Mapping[str, str], told: Mapping[str, str] | None = None
) -> None:
    """Seal them under a key of their own, in place of what was kept and its key: nothing is unwrapped.

    `told` is kept beside them in the clear, for who may not open them.

    Raises PayloadTooLarge over 64 KiB in all, Conflict if somebody else did the same meanwhile.
    """
    content = json.dumps(dict(texts)).encode()
    if len(content) > INLINE_MAX_BYTES:
        raise PayloadTooLarge(f"at most {INLINE_MAX_BYTES} bytes are kept of them")
    place = Key(scope.name, _SORT)
    key = replace(vault.begin(scope), if_version=_version(items, scope.key_item))
    try:
        sealed = vault.seal(scope, _SORT, content)
        items.write([key, Put(place, dict(told or {}), _version(items, place), sealed=sealed)])
    except ConditionFailed as error:
        raise Conflict("somebody else kept others meanwhile; look, and try again") from error
    finally:
        vault.forget(scope)


def kept(items: Items, vault: Vault, scope: Scope) -> dict[str, str] | None:
    """What `keep` sealed; None if nothing is. Raises IntegrityError, Unavailable."""
    item = items.get(Key(scope.name, _SORT))
    if item is None:
        return None
    vault.forget(scope)  # whoever kept others did so under another key
    try:
        found = json.loads(vault.open(scope, _SORT, item.sealed))
        return {str(name): str(text) for name, text in found.items()}
    except (AttributeError, ValueError) as error:
        raise IntegrityError("what is kept cannot be read") from error


def told(items: Items, scope: Scope) -> dict[str, str]:
    """What is kept of them in the clear; empty if nothing is."""
    item = items.get(Key(scope.name, _SORT))
    return {} if item is None else {name: str(text) for name, text in item.body.items()}


def version(items: Items, scope: Scope) -> int:
    """Which of the texts that were ever kept these are; 0 if none are. One read."""
    return _version(items, Key(scope.name, _SORT))


def _version(items: Items, key: Key) -> int:
    item = items.get(key)
    return 0 if item is None else item.version
