"""The bell port on its adapters, and the unix bell between processes."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensafe.storage.ports import Bell
from tensafe.storage.process_bell import ProcessBell
from tensafe.storage.unix_bell import UnixBell
from tests.contract.bell_suite import BellSuite
from tests.contract.processes import Child
from tests.fakes import MemoryBell


@pytest.fixture
def make_bell(tmp_path: Path) -> Iterator[Callable[..., UnixBell]]:
    made: list[UnixBell] = []

    def make(folder: Path = tmp_path) -> UnixBell:
        made.append(UnixBell(folder))
        return made[-1]

    yield make
    for bell in made:
        bell.close()


class TestUnixBell(BellSuite):
    @pytest.fixture
    def bell(self, make_bell: Callable[..., UnixBell]) -> Bell:
        make_bell()  # a second one in the folder, so that every ring is also sent
        return make_bell()


class TestProcessBell(BellSuite):
    @pytest.fixture
    def bell(self) -> Bell:
        return ProcessBell()


class TestMemoryBell(BellSuite):
    @pytest.fixture
    def bell(self) -> Bell:
        return MemoryBell()


class TestBetweenBells:
    def test_a_ring_is_heard_by_the_others_once(self, make_bell: Callable[..., UnixBell]) -> None:
        one, two, three = make_bell(), make_bell(), make_bell()
        before = [bell.count("t") for bell in (one, two, three)]
        one.ring("t")
        for bell, count in zip((two, three), before[1:], strict=True):
            assert bell.wait("t", since=count, timeout_s=5) == count + 1
        time.sleep(0.05)
        assert [bell.count("t") for bell in (one, two, three)] == [count + 1 for count in before]

    def test_a_folder_with_a_path_too_long_for_a_socket(
        self, tmp_path: Path, make_bell: Callable[..., UnixBell]
    ) -> None:
        folder = tmp_path / ("d" * 100) / ("e" * 100)
        assert len(str(folder)) > 108
        one, two = make_bell(folder), make_bell(folder)
        heard = two.count("t")
        one.ring("t")
        assert two.wait("t", since=heard, timeout_s=5) == heard + 1

    def test_only_the_owner_can_enter(self, tmp_path: Path, make_bell: Callable[..., UnixBell]) -> None:
        make_bell(tmp_path / "bells")
        (path,) = (tmp_path / "bells").iterdir()
        assert [oct(p.stat().st_mode & 0o777) for p in (path.parent, path)] == ["0o700", "0o600"]

    def test_the_socket_of_a_dead_process_is_removed(
        self, tmp_path: Path, child: Callable[..., Child], make_bell: Callable[..., UnixBell]
    ) -> None:
        child("wait_for_bell", tmp_path, "t").kill()
        bell = make_bell()
        assert len(list(tmp_path.iterdir())) == 2
        bell.ring("t")
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_closed_bell_leaves_nothing_and_takes_rings(
        self, tmp_path: Path, make_bell: Callable[..., UnixBell]
    ) -> None:
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        bell = make_bell()
        bell.close()
        bell.close()
        bell.ring("t")
        assert list(tmp_path.iterdir()) == []
        assert threading.active_count() == threads
        assert len(os.listdir("/proc/self/fd")) == files

    def test_a_ring_never_blocks_on_a_process_that_does_not_read(
        self, tmp_path: Path, make_bell: Callable[..., UnixBell]
    ) -> None:
        bell, deaf = make_bell(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with deaf:
            deaf.bind(str(tmp_path / "deaf.bell"))
            begin = time.monotonic()
            for n in range(500):
                bell.ring(f"topic/{n}")
            assert time.monotonic() - begin < 2

    def test_a_burst_that_overfills_the_buffer_still_arrives(
        self, tmp_path: Path, make_bell: Callable[..., UnixBell]
    ) -> None:
        """The kernel keeps some ten datagrams for a socket; the rest is sent again."""
        bell, slow = make_bell(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with slow:
            slow.bind(str(tmp_path / "slow.bell"))
            slow.settimeout(1)
            for n in range(40):
                bell.ring(f"topic/{n}")
            heard: set[str] = set()
            while len(heard) < 40:
                heard.add(slow.recv(100).decode())
        assert heard == {f"topic/{n}" for n in range(40)}

    def test_subscribers_hear_topics_until_they_leave(self, make_bell: Callable[..., UnixBell]) -> None:
        one, two = make_bell(), make_bell()
        heard: list[str] = []
        arrived = threading.Semaphore(0)

        def listen(topic: str) -> None:
            heard.append(topic)
            arrived.release()

        leave = two.subscribe(listen)
        one.ring("from afar")
        assert arrived.acquire(timeout=5)
        two.ring("from here")
        assert arrived.acquire(timeout=5)
        leave()
        leave()
        before = two.count("unheard")
        one.ring("unheard")
        two.wait("unheard", since=before, timeout_s=5)
        assert heard == ["from afar", "from here"]

    def test_a_subscriber_that_fails_deafens_nobody(
        self, make_bell: Callable[..., UnixBell], caplog: pytest.LogCaptureFixture
    ) -> None:
        one, two = make_bell(), make_bell()

        def fail(_: str) -> None:
            raise RuntimeError("a subscriber's own fault")

        two.subscribe(fail)
        for _ in range(2):
            before = two.count("t")
            one.ring("t")
            assert two.wait("t", since=before, timeout_s=5) > before
        two.ring("t")
        assert "a subscriber's own fault" in caplog.text

    def test_a_subscriber_can_feed_an_event_loop(self, make_bell: Callable[..., UnixBell]) -> None:
        one, two = make_bell(), make_bell()

        async def serve() -> str:
            loop, topics = asyncio.get_running_loop(), asyncio.Queue[str]()

            def forward(topic: str) -> None:
                loop.call_soon_threadsafe(topics.put_nowait, topic)

            leave = two.subscribe(forward)
            one.ring("t")
            try:
                return await asyncio.wait_for(topics.get(), timeout=5)
            finally:
                leave()

        assert asyncio.run(serve()) == "t"

    def test_another_process_wakes_within_100_ms(
        self, tmp_path: Path, child: Callable[..., Child], make_bell: Callable[..., UnixBell]
    ) -> None:
        waiters = [child("wait_for_bell", tmp_path, "t") for _ in range(2)]
        bell, delays_ms = make_bell(), []
        for _ in range(20):
            time.sleep(0.02)
            rung = time.monotonic()
            bell.ring("t")
            delays_ms += [(float(waiter.line()) - rung) * 1000 for waiter in waiters]
        assert sorted(delays_ms)[len(delays_ms) // 2] < 100, f"ring to wake took {delays_ms} ms"
