"""The lock between processes: exclusive, bounded, and passed on in turn."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.storage.file_lock import FairFileLock


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    one, two = FairFileLock(tmp_path / "x"), FairFileLock(tmp_path / "x")
    one.acquire(1)
    begin = time.monotonic()
    with pytest.raises(Unavailable):
        two.acquire(0.05)
    assert 0.04 < time.monotonic() - begin < 1
    one.release()
    two.acquire(1)
    with pytest.raises(Unavailable):
        one.acquire(0.01)
    two.release()
    for lock in (one, two):
        lock.close()


def test_a_waiter_that_gave_up_does_not_stand_in_the_way(tmp_path: Path) -> None:
    locks = [FairFileLock(tmp_path / "x") for _ in range(3)]
    locks[0].acquire(1)
    for waiter in locks[1:]:
        with pytest.raises(Unavailable):
            waiter.acquire(0.02)
    locks[0].release()
    locks[2].acquire(1)
    locks[2].release()
    for lock in locks:
        lock.close()


def test_a_holder_that_comes_straight_back_lets_the_waiter_pass(tmp_path: Path) -> None:
    greedy, patient = FairFileLock(tmp_path / "x"), FairFileLock(tmp_path / "x")
    order: list[str] = []
    greedy.acquire(1)

    def wait() -> None:
        patient.acquire(5)
        order.append("patient")
        patient.release()

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    greedy.release()
    greedy.acquire(5)
    order.append("greedy")
    greedy.release()
    thread.join()
    assert order == ["patient", "greedy"]
    for lock in (greedy, patient):
        lock.close()
