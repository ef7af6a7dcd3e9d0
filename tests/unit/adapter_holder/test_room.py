"""What greeted peers fill at once is bounded, and no tenant fills more than half."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe_gpu.adapter_holder.room import SMALL_BYTES, Room, Share
from tensafe_gpu.helora.ports import HOLDER_ABSENT, HeUnavailable


def refused(room: Room, tenant: str, size: int) -> bool:
    try:
        room.take(tenant, size)
    except HeUnavailable as error:
        return error.code == HOLDER_ABSENT
    return False


def test_a_tenant_fills_half_and_another_one_the_other_half() -> None:
    room = Room(100)
    assert not refused(room, "a", 30)
    assert not refused(room, "a", 20)
    assert refused(room, "a", 1)
    assert not refused(room, "b", 50)
    assert refused(room, "c", 1)
    room.give_back("a", 30)
    assert not refused(room, "c", 30)
    assert room.taken_bytes() == 100


def test_what_is_larger_than_the_room_goes_in_alone() -> None:
    """An adapter is published by its owner: what one block of it takes is not for this to forbid."""
    room = Room(100)
    assert not refused(room, "a", 250)
    assert refused(room, "a", 1)
    assert refused(room, "b", 1)
    room.give_back("a", 250)
    assert not refused(room, "b", 60)
    assert refused(room, "a", 50)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.booleans()), max_size=60))
def test_it_is_never_fuller_than_it_says(steps: list[tuple[str, int, bool]]) -> None:
    room, held = Room(100), list[tuple[str, int]]()
    for tenant, size, back in steps:
        if back and held:
            room.give_back(*held.pop(0))
        elif not refused(room, tenant, size):
            held.append((tenant, size))
        assert room.taken_bytes() == sum(one for _, one in held)
        for one in "abc":
            theirs = [size for name, size in held if name == one]
            assert sum(theirs) <= 50 or len(theirs) == 1
        assert sum(size for _, size in held) <= 100


def test_who_waits_goes_on_when_there_is_room() -> None:
    room, went = Room(100), threading.Event()
    room.take("a", 50)

    def wait() -> None:
        room.take("a", 10, wait_s=20)
        went.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not went.wait(0.1)
    room.give_back("a", 50)
    thread.join(10)
    assert went.is_set()
    began = time.monotonic()
    with pytest.raises(HeUnavailable):
        room.take("a", 45, wait_s=0.1)
    assert time.monotonic() - began >= 0.1


def test_a_share_is_given_back_once_and_small_frames_cost_nothing() -> None:
    room = Room(10 * SMALL_BYTES)
    share = Share(room, "a")
    share.take(SMALL_BYTES)
    assert room.taken_bytes() == 0
    share.take(2 * SMALL_BYTES)
    share.take(3 * SMALL_BYTES)  # in place of it
    assert room.taken_bytes() == 3 * SMALL_BYTES
    with pytest.raises(HeUnavailable):
        Share(room, "a").take(3 * SMALL_BYTES)
    share.give_back()
    share.give_back()
    assert room.taken_bytes() == 0
