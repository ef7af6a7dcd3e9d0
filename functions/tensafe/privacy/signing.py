"""What a ledger's signatures say: three statements, each a SHA-256 digest under a label of its own.

    row       this row was charged, to these units       at reserve, kept with the row
    header    these runs, mechanisms and keys            at export
    trailer   the export ends here, and was this         at export

A row's statement binds the hash of its text, which binds all rows before it, and the tags of its units,
from which a third party recounts participations.
"""

from __future__ import annotations

import hashlib
from typing import Final

_ROW: Final = b"tensafe/privacy/ledger-row/v1\0"
_HEADER: Final = b"tensafe/privacy/ledger-export-header/v1\0"
_TRAILER: Final = b"tensafe/privacy/ledger-export-trailer/v1\0"


def row_digest(row_hash: str, packed_tags: bytes) -> bytes:
    """What is signed of a row: `row_hash` is hexadecimal, `packed_tags` as `units.pack` writes them."""
    return hashlib.sha256(_ROW + bytes.fromhex(row_hash) + hashlib.sha256(packed_tags).digest()).digest()


def header_digest(text: str) -> bytes:
    """What is signed of an export's header: its canonical JSON without the signature."""
    return hashlib.sha256(_HEADER + text.encode()).digest()


def trailer_digest(text: str) -> bytes:
    """What is signed of an export's trailer: its canonical JSON without the signature."""
    return hashlib.sha256(_TRAILER + text.encode()).digest()
