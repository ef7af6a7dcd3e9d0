"""Unit and contract tests open no socket of the Internet unless their mark says so: one that does fails.

Python's own sockets are meant, whoever makes them, in this process: those of asyncio, httpx, botocore and
http.server are all of them. Sockets of the family UNIX are files, and allowed.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import urllib3.util.connection  # noqa: F401 - opens one when it is imported, to learn whether there is IPv6

NAME: Final = "no-sockets"
_TIERS: Final = ("tests/unit/", "tests/contract/")
_EXEMPT: Final = ("slow", "sockets", "emulator", "docker", "gpu")
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)


class SocketOpened(Exception):
    """A test of the fast tier may not do this; mark it with `sockets`, or do without."""


class NoSockets:
    """The plugin. `opened`: where the test in hand opened a socket, though somebody swallowed the refusal."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._forbidden = False
        self.opened: list[str] = []
        self._watch()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Fixtures of every scope belong to the test for which they are made."""
        self._forbidden, self.opened = self.forbids(item), []
        try:
            return (yield)
        finally:
            self._forbidden = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Iterator[None]:
        try:
            return (yield)
        finally:
            if self.opened:
                pytest.fail(f"it opened a socket: {'; '.join(self.opened)}", pytrace=False)

    def forbids(self, item: pytest.Item) -> bool:
        """Whether the test may open none."""
        path = item.path.relative_to(self._root).as_posix() if item.path.is_relative_to(self._root) else ""
        return path.startswith(_TIERS) and not any(item.get_closest_marker(mark) for mark in _EXEMPT)

    def _watch(self) -> None:
        made = socket.socket.__init__

        def watched(
            this: socket.socket, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
        ) -> None:
            internet = fileno is None and (family == -1 or family in _INTERNET)
            if self._forbidden and internet:
                where = traceback.extract_stack()[-2]
                self.opened.append(f"{where.filename}:{where.lineno}")
                raise SocketOpened(self.opened[-1])
            made(this, family, type, proto, fileno)

        patched: Any = socket.socket
        patched.__init__ = watched
