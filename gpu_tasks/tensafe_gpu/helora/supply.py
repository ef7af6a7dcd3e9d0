"""Prepared masks of one site in the order of their use, and which of their indices are burned."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from tensafe_gpu.helora.burned import Burn, rounded_up
from tensafe_gpu.helora.masks import PreparedBlock
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.ports import SiteId
from tensafe_gpu.helora.seal_stream import WordArray


class Slice(NamedTuple):
    """Indices [first, first + tokens) of a block, this caller's alone."""

    block: PreparedBlock
    first: int
    tokens: int

    @property
    def shares(self) -> WordArray:
        """uint32 [tokens, R]: the block's at these indices."""
        return self.block.shares[self.first : self.first + self.tokens]


@dataclass(slots=True)
class _Cursor:
    block: PreparedBlock
    next: int = 0
    burned: int = 0


class Supply:
    """Masks of one site. Not thread-safe: the key holder's lock guards it."""

    def __init__(self, site: SiteId, digest: str, epoch: int) -> None:
        self._site, self._digest, self._epoch = site, digest, epoch
        self._cursors: deque[_Cursor] = deque()

    def add(self, block: PreparedBlock) -> None:
        """A freshly prepared block, used after those before it."""
        self._cursors.append(_Cursor(block))

    def has(self, tokens: int) -> bool:
        """Whether so many are prepared and not used; mostly the first block shows it."""
        cursors = self._cursors
        return (bool(cursors) and N - cursors[0].next >= tokens) or self.left() >= tokens

    def left(self) -> int:
        """Tokens prepared and not used."""
        return sum(N - cursor.next for cursor in self._cursors)

    def take(self, tokens: int) -> tuple[list[Slice], list[Burn]]:
        """Slices for so many tokens, which must be left, and what has to be burned before they are used.

        They are gone from here at once: a caller that then fails loses them.
        """
        slices, burns = [], []
        while tokens:
            cursor = self._cursors[0]
            count = min(tokens, N - cursor.next)
            slices.append(Slice(cursor.block, cursor.next, count))
            cursor.next += count
            tokens -= count
            if cursor.next > cursor.burned:
                burns.append(self._burned(cursor, rounded_up(cursor.next)))
            if cursor.next == N:
                self._cursors.popleft()
        return slices, burns

    def ahead(self, tokens: int) -> list[Burn]:
        """What has to be burned of the first block before so many are used of it."""
        if not self._cursors:
            return []
        cursor = self._cursors[0]
        until = min(rounded_up(cursor.next + tokens), N)
        return [self._burned(cursor, until)] if until > cursor.burned else []

    def _burned(self, cursor: _Cursor, until: int) -> Burn:
        since, cursor.burned = cursor.burned, until
        return Burn(cursor.block.block_id, self._digest, self._epoch, self._site, since, until)

    def skip_reserved(self) -> None:
        """Give up what is left of reserved ranges: the other side may have restarted and lost them too."""
        for cursor in self._cursors:
            cursor.next = cursor.burned
        while self._cursors and self._cursors[0].next == N:
            self._cursors.popleft()

    def drop(self) -> None:
        """Forget every block."""
        self._cursors.clear()
