"""A worker says that it lives until it stops, whatever the store does meanwhile."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.metrics.port import NoMetrics
from tensafe.services import Services
from tensafe_gpu import process


class Workers:
    """Counts announcements; the second and third find the store full."""

    def __init__(self) -> None:
        self.calls = 0
        self.again = threading.Event()

    def announce(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            raise Unavailable("the disk says: secret")
        if self.calls == 3:
            raise OSError(28, "No space left on device")
        if self.calls > 3:
            self.again.set()


def test_a_store_that_fails_for_a_while_does_not_end_the_announcing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "_EVERY_S", 0.01)
    monkeypatch.setattr(process, "_AFTER_FAILURE_S", 0.01)
    workers, stop = Workers(), threading.Event()
    services = cast(Services, SimpleNamespace(workers=workers, metrics=NoMetrics()))
    process.announce_forever(services, "trainer", "acme/tiny", "trainer-1", stop)
    assert workers.again.wait(timeout=10)
    stop.set()
    assert [record.getMessage() for record in caplog.records] == ["not announced"] * 2
