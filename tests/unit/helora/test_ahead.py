"""Rows drawn ahead are the rows that would have been drawn."""

from __future__ import annotations

import os

import pytest

from tensafe_gpu.helora import ahead as module
from tensafe_gpu.helora.ahead import AT_LEAST, MOST_WORDS, Rows, RowsAhead
from tensafe_gpu.helora.keystream import ring_rows
from tensafe_gpu.helora.parameters import N

WIDTH = 96
KEY, OTHER = os.urandom(32), os.urandom(32)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int, int, int]]:
    """Every call of the keystream."""
    calls: list[tuple[bytes, int, int, int]] = []

    def noting(*call: object) -> object:
        calls.append(call)  # type: ignore[arg-type]
        return ring_rows(*call)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "ring_rows", noting)
    return calls


@pytest.mark.parametrize("counts", [(1, 1, 1), (16, 16, 16), (1, 16, 4, 4, 16), (5, 700, 5), (1,) * 40])
@pytest.mark.parametrize("drawn_between", [True, False])
def test_what_was_drawn_ahead_is_what_would_be_drawn(counts: tuple[int, ...], drawn_between: bool) -> None:
    ahead, first = RowsAhead(), 0
    for count in counts:
        rows = Rows(KEY, first, count, WIDTH)
        assert (ahead.taken(rows) == ring_rows(*rows)).all()
        ahead.note([rows])
        if drawn_between:
            ahead.draw()
        first += count


def test_a_steady_stream_draws_nothing_when_it_is_asked(drawn: list[tuple[bytes, int, int, int]]) -> None:
    ahead = RowsAhead()
    ahead.note([Rows(KEY, 0, 4, WIDTH)])
    ahead.draw()
    drawn.clear()
    ahead.taken(Rows(KEY, 4, 4, WIDTH))
    assert drawn == []


def test_what_was_noted_is_drawn_for_all_tables_when_one_of_them_is_asked(
    drawn: list[tuple[bytes, int, int, int]],
) -> None:
    ahead = RowsAhead()
    ahead.note([Rows(KEY, 0, 4, WIDTH)])
    ahead.note([Rows(OTHER, 8, 2, WIDTH)])
    assert drawn == []
    ahead.taken(Rows(OTHER, 10, 2, WIDTH))
    assert drawn == [(KEY, 4, AT_LEAST, WIDTH), (OTHER, 10, AT_LEAST, WIDTH)]
    ahead.taken(Rows(KEY, 4, 4, WIDTH))
    assert len(drawn) == 2


def test_single_tokens_set_the_cipher_up_once_for_many(drawn: list[tuple[bytes, int, int, int]]) -> None:
    ahead = RowsAhead()
    for first in range(3 * AT_LEAST + 1):
        rows = Rows(KEY, first, 1, WIDTH)
        assert (ahead.taken(rows) == ring_rows(*rows)).all()
        ahead.note([rows])
        ahead.draw()
    begins = [1, 1 + AT_LEAST, 1 + 2 * AT_LEAST, 1 + 3 * AT_LEAST]
    assert drawn == [(KEY, 0, 1, WIDTH), *((KEY, first, AT_LEAST, WIDTH) for first in begins)]


@pytest.mark.parametrize(
    "wanted", [Rows(OTHER, 4, 4, WIDTH), Rows(KEY, 8, 4, WIDTH), Rows(KEY, 4, AT_LEAST + 1, WIDTH)]
)
def test_other_rows_are_drawn_for_themselves(wanted: Rows) -> None:
    ahead = RowsAhead()
    ahead.note([Rows(KEY, 0, 4, WIDTH)])
    ahead.draw()
    assert (ahead.taken(wanted) == ring_rows(*wanted)).all()


def test_nothing_is_drawn_beyond_a_table_or_the_limit(drawn: list[tuple[bytes, int, int, int]]) -> None:
    ahead = RowsAhead()
    ahead.note([Rows(KEY, N - 4, 4, WIDTH)])
    ahead.draw()
    assert drawn == []
    ahead.note([Rows(KEY, N - 6, 4, WIDTH), Rows(OTHER, 0, 2000, WIDTH)])
    ahead.draw()
    assert drawn == [(KEY, N - 2, 2, WIDTH), (OTHER, 2000, MOST_WORDS // WIDTH, WIDTH)]


def test_what_is_forgotten_is_drawn_again(drawn: list[tuple[bytes, int, int, int]]) -> None:
    ahead = RowsAhead()
    ahead.note([Rows(KEY, 0, 4, WIDTH)])
    ahead.draw()
    ahead.forget()
    drawn.clear()
    ahead.taken(Rows(KEY, 4, 4, WIDTH))
    assert drawn == [(KEY, 4, 4, WIDTH)]
