"""What the direct mode's frames carry: one token of one site per entry, under one key per request."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tensafe_gpu.helora.direct import DirectLayout
from tensafe_gpu.helora.frames import FrameError
from tensafe_gpu.helora.parameters import PRIMES, N
from tensafe_gpu.helora.public_keys import KEY_ID_BYTES
from tensafe_gpu.helora.seal_stream import SEED_BYTES, SeedArray, WordArray

MAX_ENTRIES: Final = 256
_PAIR: Final = struct.Struct("<HH")
_POLYNOMIAL: Final = 4 * len(PRIMES) * N
_HEAD: Final = _PAIR.size + KEY_ID_BYTES
_KEY: Final = 4 * (len(PRIMES) + 1) * N


@dataclass(frozen=True, slots=True)
class DirectEntry:
    """A token of the site with this number: uint32 [chunks, 3, N], seeds uint8 [chunks, 64]."""

    site: int
    words: WordArray
    seeds: SeedArray


def pack_direct(key_id: bytes, b: WordArray, entries: Sequence[DirectEntry]) -> list[bytes | memoryview]:
    """DIRECT: entries u16, 0 u16, key id, b uint32 [4, N]; per entry site u16, 0 u16, words, seeds."""
    parts: list[bytes | memoryview] = [_PAIR.pack(len(entries), 0) + key_id, b.astype("<u4").tobytes()]
    for one in entries:
        parts += [_PAIR.pack(one.site, 0), one.words.astype("<u4").tobytes(), one.seeds.tobytes()]
    return parts


def direct_bytes(layouts: Sequence[DirectLayout]) -> int:
    """Of a DIRECT; `layouts` by entry."""
    return _HEAD + _KEY + sum(_entry_bytes(one) for one in layouts)


def most_direct_bytes(layouts: Sequence[DirectLayout]) -> int:
    """Of a DIRECT to these sites."""
    return _HEAD + _KEY + MAX_ENTRIES * max(_entry_bytes(one) for one in layouts)


def unpack_direct(
    payload: memoryview, layouts: Sequence[DirectLayout]
) -> tuple[bytes, WordArray, list[DirectEntry]]:
    """Key id, b and entries; `layouts` by site number. Raises FrameError."""
    begin = _HEAD + _KEY
    if len(payload) < begin:
        raise FrameError("a direct request ends before its entries")
    count, zero = _PAIR.unpack_from(payload)
    if zero or not 1 <= count <= MAX_ENTRIES:
        raise FrameError(f"a direct request holds 1 to {MAX_ENTRIES} tokens")
    b = np.frombuffer(payload[_HEAD:begin], dtype="<u4").reshape(len(PRIMES) + 1, N)
    entries = []
    for _ in range(count):
        if len(payload) < begin + _PAIR.size:
            raise FrameError("a direct request ends before its last token")
        site, zero = _PAIR.unpack_from(payload, begin)
        if zero or site >= len(layouts):
            raise FrameError("a site's number is out of range")
        chunks = layouts[site].chunks
        middle = begin + _PAIR.size + chunks * _POLYNOMIAL
        end = middle + chunks * SEED_BYTES
        if len(payload) < end:
            raise FrameError("a direct request ends before its last token")
        words = np.frombuffer(payload[begin + _PAIR.size : middle], dtype="<u4")
        seeds = np.frombuffer(payload[middle:end], dtype=np.uint8).reshape(chunks, SEED_BYTES)
        entries.append(DirectEntry(site, words.reshape(chunks, len(PRIMES), N), seeds))
        begin = end
    if begin != len(payload):
        raise FrameError("a direct request has something behind its last token")
    return bytes(payload[_PAIR.size : _HEAD]), b, entries


def pack_direct_reply(parts: Sequence[WordArray]) -> list[bytes | memoryview]:
    """DIRECT_REPLY: uint32 [groups, 2, 3, N] of each entry."""
    return [part.astype("<u4").tobytes() for part in parts]


def direct_reply_bytes(layouts: Sequence[DirectLayout]) -> int:
    """Of a DIRECT_REPLY; `layouts` by entry."""
    return sum(_reply_sizes(layouts))


def unpack_direct_reply(payload: memoryview, layouts: Sequence[DirectLayout]) -> list[WordArray]:
    """`layouts` by entry. Raises FrameError."""
    sizes = _reply_sizes(layouts)
    if len(payload) != sum(sizes):
        raise FrameError(f"a direct reply of {len(payload)} bytes where {sum(sizes)} belong")
    result, begin = [], 0
    for layout, size in zip(layouts, sizes, strict=True):
        words = np.frombuffer(payload[begin : begin + size], dtype="<u4")
        result.append(words.reshape(layout.groups, 2, len(PRIMES), N))
        begin += size
    return result


def _entry_bytes(layout: DirectLayout) -> int:
    return _PAIR.size + layout.chunks * (_POLYNOMIAL + SEED_BYTES)


def _reply_sizes(layouts: Sequence[DirectLayout]) -> list[int]:
    return [layout.groups * 2 * _POLYNOMIAL for layout in layouts]
