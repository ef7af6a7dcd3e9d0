"""Rows of masks and shares drawn before they are asked for, while the other party works.

A row that is drawn is not used: its index is burned, or accepted, as always, when a token takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tensafe_gpu.helora.keystream import ring_rows
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.residues import Uint32Array

MOST_WORDS: Final = 1 << 15
"""Of a table; more are drawn when they are needed, since their drawing would last longer than the answer."""
AT_LEAST: Final = 16
"""Tokens of a table that are drawn at once: setting the cipher up takes as long as a row of a decode step."""
_MOST_TABLES: Final = 1024
"""An adapter has a few hundred sites; what is beyond belongs to blocks that were given up."""


class Rows(NamedTuple):
    """Rows [first, first + tokens) of a key's table, `width` words each."""

    key: bytes
    first: int
    tokens: int
    width: int


@dataclass(frozen=True, slots=True)
class _Drawn:
    first: int
    rows: Uint32Array = field(repr=False)

    def has(self, first: int, tokens: int) -> bool:
        """Whether these rows are among them."""
        return self.first <= first and first + tokens <= self.first + len(self.rows)


class RowsAhead:
    """The next rows of each table, as many as were taken last or more. Not for several threads at once."""

    def __init__(self) -> None:
        self._drawn: dict[bytes, _Drawn] = {}
        self._noted: dict[bytes, Rows] = {}

    def taken(self, wanted: Rows) -> Uint32Array:
        """uint32 [tokens, width], as `ring_rows` has them.

        What was noted and not drawn is drawn for all tables at once: between the layers of a model each takes
        several times as long, since those leave nothing of this code in the core's caches.
        """
        if wanted.key in self._noted:
            self.draw()
        drawn = self._drawn.get(wanted.key)
        if drawn is None or not drawn.has(wanted.first, wanted.tokens):
            self._drawn.pop(wanted.key, None)
            return ring_rows(*wanted)
        begin = wanted.first - drawn.first
        return drawn.rows[begin : begin + wanted.tokens]

    def note(self, used: Sequence[Rows]) -> None:
        """These rows were used: what follows them is to be drawn."""
        for rows in used:
            self._noted[rows.key] = rows

    def draw(self) -> None:
        """Draw what follows the rows that were noted, where it is not there yet."""
        if len(self._drawn) > _MOST_TABLES:
            self._drawn.clear()
        for key, begin, taken, width in self._noted.values():
            first, drawn = begin + taken, self._drawn.get(key)
            if drawn is not None and first < N and drawn.has(first, min(taken, N - first)):
                continue
            self._drawn.pop(key, None)
            count = min(max(taken, AT_LEAST), N - first, MOST_WORDS // width)
            if count > 0:
                self._drawn[key] = _Drawn(first, ring_rows(key, first, count, width))
        self._noted.clear()

    def forget(self) -> None:
        """Drop them all."""
        self._drawn.clear()
        self._noted.clear()
