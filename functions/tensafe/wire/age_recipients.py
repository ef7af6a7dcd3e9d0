"""Recipients of an encrypted export (age-encryption.org/v1), checked before anything is exported.

A mistyped recipient would otherwise be found after the weights were written. Only public keys pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyrage

from tensafe.contracts.errors import InvalidRequest

MAX_RECIPIENTS: Final = 10
_MAX_CHARS: Final = 4096


def check_recipients(recipients: Sequence[str], field: str) -> tuple[str, ...]:
    """1 to 10 distinct recipients: native `age1...` keys, or ssh-ed25519 and ssh-rsa public keys."""
    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        raise InvalidRequest(f"{field} must have 1 to {MAX_RECIPIENTS} recipients", field=field)
    if len(set(recipients)) != len(recipients):
        raise InvalidRequest(f"{field} names a recipient twice", field=field)
    for i, recipient in enumerate(recipients):
        _check_recipient(recipient, f"{field}[{i}]")
    return tuple(recipients)


def _check_recipient(recipient: str, field: str) -> None:
    if recipient.upper().startswith("AGE-SECRET-KEY-"):
        raise InvalidRequest(f"{field} is a secret key; send its public recipient (age1...)", field=field)
    kind = pyrage.x25519.Recipient if recipient.startswith("age1") else pyrage.ssh.Recipient
    try:
        if len(recipient) <= _MAX_CHARS and recipient.isascii():
            kind.from_str(recipient)
            return
    except pyrage.RecipientError:
        pass
    raise InvalidRequest(
        f"{field} is neither an age1... recipient nor an SSH public key (ssh-ed25519, ssh-rsa)", field=field
    )
