"""Encryption of exported files to age recipients (age-encryption.org/v1, by pyrage)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pyrage

from tensafe.contracts.errors import InvalidRequest

_FIELD: Final = "age_encryption_recipients"


def encrypt_files(files: Mapping[str, bytes], recipients: Sequence[str]) -> dict[str, bytes]:
    """Every file encrypted to all recipients, named with `.age` appended.

    The edge has checked them; what is no recipient all the same, or none at all, is InvalidRequest.
    """
    if not recipients:
        raise InvalidRequest("name at least one recipient to encrypt to", field=_FIELD)
    parsed = [_parsed(text) for text in recipients]
    return {f"{name}.age": pyrage.encrypt(data, parsed) for name, data in files.items()}


def _parsed(text: str) -> pyrage.x25519.Recipient | pyrage.ssh.Recipient:
    kind = pyrage.x25519.Recipient if text.startswith("age1") else pyrage.ssh.Recipient
    try:
        return kind.from_str(text)
    except pyrage.RecipientError:
        raise InvalidRequest("one is no age1... recipient and no SSH public key", field=_FIELD) from None
