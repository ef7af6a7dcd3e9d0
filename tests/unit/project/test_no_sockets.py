"""`make test-fast` opens no sockets: a test that does is failed, even if the code under test hides it."""

from __future__ import annotations

import asyncio
import http.server
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from tests.project_files import ROOT
from tests.support.no_sockets import NAME, NoSockets, SocketOpened


@pytest.fixture
def plugin(request: pytest.FixtureRequest) -> NoSockets:
    return cast(NoSockets, request.config.pluginmanager.get_plugin(NAME))


async def _connect() -> None:
    await asyncio.open_connection("127.0.0.1", 9)


@pytest.mark.parametrize(
    "opens",
    [
        socket.socket,
        lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: urllib.request.urlopen("http://127.0.0.1:9"),
        lambda: httpx.get("http://127.0.0.1:9"),
        lambda: http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler),
        lambda: asyncio.run(_connect()),
    ],
)
def test_whoever_opens_one_is_refused_and_found(plugin: NoSockets, opens: Callable[[], Any]) -> None:
    with pytest.raises(SocketOpened):
        opens()
    assert plugin.opened
    plugin.opened.clear()


def test_a_refusal_that_is_swallowed_is_found_at_the_end(plugin: NoSockets) -> None:
    with suppress(Exception):
        socket.socket()
    with pytest.raises(pytest.fail.Exception, match=f"test_no_sockets|{socket.__name__}"):
        _ended(plugin)
    plugin.opened.clear()


def _ended(plugin: NoSockets) -> None:
    generator = plugin.pytest_runtest_teardown()
    next(generator)
    with suppress(StopIteration):
        generator.send(None)


def test_sockets_that_are_files_are_allowed(plugin: NoSockets) -> None:
    for one in socket.socketpair():
        one.close()
    socket.socket(socket.AF_UNIX).close()
    assert plugin.opened == []


@pytest.mark.parametrize(
    ("path", "mark", "forbidden"),
    [
        ("tests/unit/api/test_x.py", None, True),
        ("tests/contract/test_x.py", None, True),
        ("tests/contract/test_x.py", "slow", False),
        ("tests/contract/test_x.py", "emulator", False),
        ("tests/integration/service/test_x.py", None, False),
    ],
)
def test_the_fast_tier_alone_is_held_to_it(
    plugin: NoSockets, path: str, mark: str | None, forbidden: bool
) -> None:
    item = SimpleNamespace(path=ROOT / path, get_closest_marker=lambda name: name == mark or None)
    assert plugin.forbids(cast(pytest.Item, item)) is forbidden
