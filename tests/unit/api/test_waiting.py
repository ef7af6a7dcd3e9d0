"""Waiting: woken at once, looking again twice a second at most, and never fooled by a lost or false ring."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tensafe.api import waiting
from tensafe.api.waiting import ResultWaiter
from tensafe.operations.layout import finished_topic
from tensafe.storage.process_bell import ProcessBell
from tests.fakes import MemoryBell

STREAM = "s-1:train:0"


class SilentBell:
    """A bell of another platform: it cannot call back."""

    def ring(self, topic: str) -> None: ...


def wait(
    bell: object, look: Callable[[], Any], timeout_s: float, meanwhile: Callable[[], None] | None = None
) -> tuple[Any, float]:
    """What `until` returns, and how long it took."""

    async def go() -> tuple[Any, float]:
        waiter = ResultWaiter(SimpleNamespace(ports=SimpleNamespace(bell=bell)))  # type: ignore[arg-type]
        waiter.start(asyncio.get_running_loop())
        thread = threading.Thread(target=meanwhile or (lambda: None))
        began = time.monotonic()
        thread.start()
        found = await waiter.until(STREAM, look, timeout_s)
        took = time.monotonic() - began
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        assert waiter._waiting == {}  # nothing is left behind by those who have gone
        return found, took

    return asyncio.run(go())


class Looks:
    """Counts the looks; finds something from the n-th on."""

    def __init__(self, found_at: int = 10**9) -> None:
        self.count = 0
        self.found_at = found_at

    def __call__(self) -> str | None:
        self.count += 1
        return "done" if self.count >= self.found_at else None


def test_what_is_there_already_is_not_waited_for() -> None:
    look = Looks(1)
    found, took = wait(MemoryBell(), look, 5)
    assert (found, look.count) == ("done", 1)
    assert took < 0.2


def test_nobody_looks_while_nothing_rings() -> None:
    look = Looks()
    found, took = wait(MemoryBell(), look, 0.4)
    assert found is None
    assert 0.4 <= took < 0.8
    assert look.count == 2  # at the beginning and at the end


def test_a_ring_wakes_at_once() -> None:
    bell, look = MemoryBell(), Looks(2)

    def ring() -> None:
        time.sleep(0.1)
        bell.ring(finished_topic(STREAM))

    found, took = wait(bell, look, 5, ring)
    assert found == "done"
    assert 0.1 <= took < 0.4


def test_a_false_ring_and_one_of_another_stream_change_nothing() -> None:
    bell, look = MemoryBell(), Looks()

    def ring() -> None:
        for topic in (finished_topic(STREAM), finished_topic("s-2:train:0"), "queue/x"):
            bell.ring(topic)

    found, took = wait(bell, look, 0.4, ring)
    assert found is None
    assert took >= 0.4
    assert look.count <= 3


def test_a_lost_ring_costs_a_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_SECOND_LOOK_S", 0.1)
    look = Looks(3)
    found, took = wait(MemoryBell(), look, 5)
    assert found == "done"
    assert 0.2 <= took < 0.6


def test_a_ring_between_the_look_and_the_wait_is_heard() -> None:
    bell = MemoryBell()

    def look() -> str | None:
        if bell.count(finished_topic(STREAM)):
            return "done"
        bell.ring(finished_topic(STREAM))  # it rings after we have looked
        return None

    found, took = wait(bell, look, 5)
    assert found == "done"
    assert took < 0.4


def test_without_calls_back_it_looks_again_soon() -> None:
    look = Looks(4)
    found, took = wait(SilentBell(), look, 5)
    assert found == "done"
    assert 0.05 + 0.075 + 0.1125 <= took < 0.6


def test_without_calls_back_the_looks_become_rare() -> None:
    """Each is a read of the store: 50 ms all along would make 60."""
    look = Looks()
    found, took = wait(ProcessBell(), look, 3)
    assert found is None
    assert 3 <= took < 3.5
    assert 9 <= look.count <= 13


def test_a_look_that_fails_is_the_waiters_failure() -> None:
    def look() -> None:
        raise LookupError("erased")

    with pytest.raises(LookupError):
        wait(MemoryBell(), look, 5)
