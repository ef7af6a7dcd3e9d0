"""Merkle trees of RFC 6962, section 2.1: SHA-256, a leaf is hashed after 0x00 and a node after 0x01.

The two prefixes keep a node from being passed off as a leaf. A node without a partner moves up as it
is, which gives the tree of the RFC for any number of leaves. Kept in memory are the roots of 1,024
leaves each, so that a proof hashes one such chunk and the roots: 32 bytes per 1,024 leaves held.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Final

from tensafe.contracts.errors import IntegrityError, InvalidRequest

HASH_BYTES: Final = 32
_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"
_CHUNK_LEVELS: Final = 10
_CHUNK: Final = 1 << _CHUNK_LEVELS


def leaf_hash(leaf: bytes | memoryview) -> bytes:
    """Hash of one leaf."""
    digest = hashlib.sha256(_LEAF)
    digest.update(leaf)
    return digest.digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _above(level: list[bytes]) -> list[bytes]:
    pairs = [_node_hash(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
    return pairs + level[-1:] if len(level) % 2 else pairs


def _root(level: list[bytes]) -> bytes:
    while len(level) > 1:
        level = _above(level)
    return level[0]


def _path(level: list[bytes], index: int) -> list[bytes]:
    """The siblings from the leaf up; none where a node moves up alone."""
    path = []
    while len(level) > 1:
        if index ^ 1 < len(level):
            path.append(level[index ^ 1])
        level, index = _above(level), index // 2
    return path


class MerkleTree:
    """The tree over `size` leaves that `leaf(index)` returns; it calls it again for every proof."""

    def __init__(self, size: int, leaf: Callable[[int], bytes | memoryview]) -> None:
        if size < 1:
            raise InvalidRequest("a Merkle tree has at least one leaf")
        self._size = size
        self._leaf = leaf
        self._roots = [_root(self._chunk(first)) for first in range(0, size, _CHUNK)]
        self.root: Final = _root(self._roots)
        """32 bytes that commit to every leaf, their order and their number."""

    def _chunk(self, first: int) -> list[bytes]:
        return [leaf_hash(self._leaf(index)) for index in range(first, min(first + _CHUNK, self._size))]

    def proof(self, index: int) -> list[bytes]:
        """Audit path of leaf `index` (RFC 6962, section 2.1.1): at most ceil(log2(size)) hashes."""
        if not 0 <= index < self._size:
            raise InvalidRequest(f"the tree has leaves 0 to {self._size - 1}, not {index}")
        chunk, inside = divmod(index, _CHUNK)
        return _path(self._chunk(chunk * _CHUNK), inside) + _path(self._roots, chunk)


def verify_inclusion(root: bytes, size: int, index: int, leaf: bytes, proof: Sequence[bytes]) -> None:
    """Check that `leaf` is leaf `index` of the tree of `size` leaves with this root.

    Needs nothing but its arguments. Raises IntegrityError.
    """
    if not 0 <= index < size:
        raise IntegrityError(f"a tree of {size} leaves has no leaf {index}")
    computed, siblings, width = leaf_hash(leaf), iter(proof), size
    while width > 1:
        if index ^ 1 < width:
            sibling = next(siblings, b"")
            if len(sibling) != HASH_BYTES:
                raise IntegrityError("the inclusion proof is too short or holds something that is no hash")
            computed = _node_hash(sibling, computed) if index % 2 else _node_hash(computed, sibling)
        index, width = index // 2, (width + 1) // 2
    if next(siblings, None) is not None:
        raise IntegrityError("the inclusion proof is longer than the tree is high")
    if not hmac.compare_digest(computed, root):
        raise IntegrityError("the inclusion proof does not lead to the root: another leaf, place or tree")
