"""What is prepared of a site is handed out once, from one block into the next."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tensafe_gpu.helora.burned import RESERVE
from tensafe_gpu.helora.masks import PreparedBlock
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.supply import Supply


def supply(blocks: int) -> Supply:
    made = Supply("s", "0" * 64, 1)
    for _ in range(blocks):
        made.add(PreparedBlock(os.urandom(16), os.urandom(32), np.zeros((N, 1), np.uint32)))
    return made


@pytest.mark.parametrize("taken", [0, 1, N - 1, N, N + 5, 2 * N])
def test_it_has_what_is_left_in_all_blocks_together(taken: int) -> None:
    some = supply(2)
    some.take(taken)
    left = 2 * N - taken
    assert some.left() == left
    for tokens in (1, left - 1, left, left + 1, 3 * N):
        assert some.has(tokens) is (tokens <= left), tokens


def test_slices_follow_each_other_and_are_burned_in_steps_before_they_are_used() -> None:
    some = supply(2)
    places: list[tuple[bytes, int]] = []
    burned: dict[bytes, int] = {}
    for tokens in (1, 300, N - 400, 200, 64):
        slices, burns = some.take(tokens)
        for burn in burns:
            assert burned.get(burn.block_id, 0) == burn.since
            assert burn.until % RESERVE == 0
            burned[burn.block_id] = burn.until
        for one in slices:
            ids = [(one.block.block_id, one.first + n) for n in range(one.tokens)]
            assert all(index < burned[block_id] for block_id, index in ids)
            places += ids
    assert len(places) == len(set(places)) == N + 165


def test_what_the_next_tokens_need_is_burned_ahead_once_and_no_more_than_the_block() -> None:
    some = supply(2)
    assert [(burn.since, burn.until) for burn in some.ahead(1)] == [(0, RESERVE)]
    assert some.ahead(RESERVE) == []
    assert [(burn.since, burn.until) for burn in some.ahead(RESERVE + 1)] == [(RESERVE, 2 * RESERVE)]
    assert some.take(2 * RESERVE)[1] == []  # nothing that is burned is burned again
    assert [burn.since for burn in some.take(1)[1]] == [2 * RESERVE]
    assert [(burn.since, burn.until) for burn in some.ahead(3 * N)] == [(3 * RESERVE, N)]
    assert some.ahead(N) == []
    assert supply(0).ahead(1) == []
