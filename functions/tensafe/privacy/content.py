"""Content hashes: what a unit's data are, as 32 bytes that nobody without the domain's key can guess.

A datum's digest is SHA-256 over, in this order (all numbers little-endian):

    label               b"tensafe/privacy/datum/v1" and a zero byte
    tokens of the model input     uint64 count, then int32 each
    loss inputs         uint32 count, then for each, sorted by the bytes of its name:
                        uint16 length of the name, the name in UTF-8, b"f" (float32) or b"q" (int64),
                        uint8 number of dimensions, uint64 each, then the values in row-major order

`dp_unit_id` is no loss input here: it names the unit and is hashed once, below. Values count by their
bits: 0.0 and -0.0 differ, and weights of one differ from no weights.

A unit's content hash is HMAC-SHA256 under the domain's content key over the label
b"tensafe/privacy/unit-content/v1" and a zero byte, the id (int64), the number of its data (uint64) and
their digests in sorted order. So the order of a user's examples is free and their number is not; two
units with equal data have unrelated hashes, and so do two domains.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import Datum

CONTENT_HASH_BYTES: Final = 32
CONTENT_KEY_BYTES: Final = 32
_DATUM_LABEL: Final = b"tensafe/privacy/datum/v1\0"
_UNIT_LABEL: Final = b"tensafe/privacy/unit-content/v1\0"
_KEY_LABEL: Final = b"tensafe/privacy/content-key/v1"
_CODES: Final = {np.dtype(np.float32): b"f", np.dtype(np.int64): b"q"}


def content_key(domain_secret: bytes) -> bytes:
    """The key of a domain's content hashes: HKDF-SHA256 of the domain's 32-byte secret."""
    if len(domain_secret) != CONTENT_KEY_BYTES:
        raise InvalidRequest(
            f"the domain's secret must be {CONTENT_KEY_BYTES} bytes, got {len(domain_secret)}"
        )
    return HKDF(algorithm=hashes.SHA256(), length=CONTENT_KEY_BYTES, salt=None, info=_KEY_LABEL).derive(
        domain_secret
    )


def datum_digest(datum: Datum) -> bytes:
    """32-byte digest of one datum's tokens (int32 [T]) and loss inputs (float32 or int64, any shape).

    Raises InvalidRequest for another dtype or shape of tokens.
    """
    tokens = datum.tokens
    if tokens.dtype != np.int32 or tokens.ndim != 1:
        raise InvalidRequest(f"tokens must be int32 of shape [T], not {tokens.dtype} {list(tokens.shape)}")
    digest = hashlib.sha256(_DATUM_LABEL)
    digest.update(struct.pack("<Q", tokens.shape[0]))
    digest.update(_row_major(tokens))
    digest.update(struct.pack("<I", len(datum.inputs)))
    for encoded, values in sorted((name.encode(), values) for name, values in datum.inputs.items()):
        code = _CODES.get(values.dtype)
        if code is None:
            raise InvalidRequest(f"a loss input must be float32 or int64, not {values.dtype}")
        head = struct.pack("<H", len(encoded)) + encoded + code + struct.pack("<B", values.ndim)
        digest.update(head + struct.pack(f"<{values.ndim}Q", *values.shape))
        digest.update(_row_major(values))
    return digest.digest()


def unit_content_hash(key: bytes, unit_id: int, data: Sequence[Datum]) -> bytes:
    """32-byte keyed hash of everything that one unit (an int64 id) holds, whatever the order of its data.

    `key` is the domain's content key. Raises InvalidRequest for a unit without data.
    """
    return unit_hash_of_digests(key, unit_id, [datum_digest(datum) for datum in data])


def unit_hash_of_digests(key: bytes, unit_id: int, digests: Sequence[bytes]) -> bytes:
    """`unit_content_hash` from the digests of the unit's data (`datum_digest`), in any order."""
    if not digests:
        raise InvalidRequest("a unit has at least one datum")
    head = _UNIT_LABEL + struct.pack("<qQ", unit_id, len(digests))
    return hmac.digest(key, head + b"".join(sorted(digests)), "sha256")


def same_hash(left: bytes, right: bytes) -> bool:
    """Whether two content hashes are equal, in time that does not depend on where they differ."""
    return hmac.compare_digest(left, right)


def _row_major(values: npt.NDArray[np.generic]) -> memoryview:
    little = values.dtype.newbyteorder("<")
    return np.ascontiguousarray(values, dtype=little).reshape(-1).view(np.uint8).data
