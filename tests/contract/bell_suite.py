"""What every `Bell` must do. A subclass supplies the fixture `bell`."""

from __future__ import annotations

import threading
import time

from tensafe.storage.ports import Bell


class BellSuite:
    def test_a_ring_raises_the_count(self, bell: Bell) -> None:
        before = bell.count("a/topic")
        bell.ring("a/topic")
        bell.ring("a/topic")
        assert bell.count("a/topic") == before + 2

    def test_wait_returns_at_once_when_it_has_rung_since(self, bell: Bell) -> None:
        heard = bell.count("a")
        bell.ring("a")
        begin = time.monotonic()
        assert bell.wait("a", since=heard, timeout_s=10) == heard + 1
        assert time.monotonic() - begin < 1

    def test_wait_ends_with_its_time(self, bell: Bell) -> None:
        heard = bell.count("a")
        begin = time.monotonic()
        assert bell.wait("a", since=heard, timeout_s=0.1) == heard
        assert 0.09 <= time.monotonic() - begin < 1
        assert bell.wait("a", since=heard, timeout_s=0) == heard
        assert bell.wait("a", since=heard, timeout_s=-1) == heard

    def test_a_ring_wakes_every_waiter(self, bell: Bell) -> None:
        heard, woken = bell.count("a"), []

        def wait() -> None:
            bell.wait("a", since=heard, timeout_s=10)
            woken.append(time.monotonic())

        threads = [threading.Thread(target=wait) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        rung = time.monotonic()
        bell.ring("a")
        for thread in threads:
            thread.join(timeout=10)
        assert len(woken) == 8
        assert max(woken) - rung < 1

    def test_ring_never_raises(self, bell: Bell) -> None:
        for topic in ("", "é\ud800", "x" * 100_000, "a\0b"):
            bell.ring(topic)
