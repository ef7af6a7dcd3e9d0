"""Masks, shares and floods from AES-256-CTR: regenerated from a key and a place, so none is stored.

A table has one row per token: row n of a block's rho is what masks token n, row n of s what its answer
holds back. Rows begin on the cipher's blocks, so any run of rows is one call. Keys are used for one table
each.
"""

from __future__ import annotations

import os
import struct
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tensafe_gpu.helora.parameters import FLOOD, T

KEY_BYTES: Final = 32
_WORDS_PER_BLOCK: Final = 4


def new_key() -> bytes:
    """32 bytes from the operating system's generator."""
    return os.urandom(KEY_BYTES)


def derived_key(secret: bytes, *parts: str | int | bytes) -> bytes:
    """A key for the place that `parts` name, by HKDF-SHA256; each part is length-prefixed."""
    info = b"tensafe/helora/1"
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        info += struct.pack(">I", len(content)) + content
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def ring_rows(key: bytes, first: int, count: int, width: int) -> npt.NDArray[np.uint32]:
    """Rows [first, first + count) of the key's table: uint32 [count, width], uniform below t = 2**28."""
    blocks = -(-width // _WORDS_PER_BLOCK)
    stream = _encryptor(key, first * blocks)
    words = np.frombuffer(stream.update(bytes(16 * blocks * count)), dtype="<u4")
    rows = words.reshape(count, blocks * _WORDS_PER_BLOCK)[:, :width]
    return rows & np.uint32(T - 1)


def floods(count: int, bound: int = FLOOD) -> npt.NDArray[np.int64]:
    """int64 [count], uniform in [-bound, bound), under a key that is used once. `bound` is below 2**62.

    By rejection from the next power of two, so exactly uniform.
    """
    stream = _encryptor(new_key(), 0)
    drop = np.uint64(64 - (2 * bound - 1).bit_length())
    limit = np.uint64(2 * bound)
    values = np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8") >> drop
    while (rejected := np.flatnonzero(values >= limit)).size:
        values[rejected] = np.frombuffer(stream.update(bytes(8 * rejected.size)), dtype="<u8") >> drop
    return values.astype(np.int64) - bound


def _encryptor(key: bytes, block: int) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(block.to_bytes(16, "big"))).encryptor()
