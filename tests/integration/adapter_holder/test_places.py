"""A crowd at an adapter holder's door: whoever greets is served beside it, and no tenant takes all places."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from tensafe_gpu.adapter_holder import door, places
from tensafe_gpu.adapter_holder.listener import Patience
from tensafe_gpu.adapter_holder.places import Visitor, Waiting
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Connection, Connector, TlsConnector, Wanted, unix_connector
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.ports import HOLDER_ABSENT, NOT_ALLOWED, HeUnavailable
from tensafe_gpu.helora.renewal import of_files
from tensafe_gpu.helora.tls import client_context
from tests.support.certificates import Authority
from tests.support.helora import QUICK, TENANT, Holder, adapter_holder, over_tls, peft_files, policy

D, RANK = 64, 8
OUT = "model.layers.0.self_attn.o"
PATIENCE = Patience(greeting_s=30, idle_s=30, frame_s=5)
"""Nobody in a crowd goes by itself while a test lasts."""


class Crowd:
    """Peers that connect, say so much and no more, and come again at once when they are closed."""

    def __init__(self, count: int, connect: Callable[[], socket.socket], says: bytes) -> None:
        self._count, self._connect, self._says = count, connect, says
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.came = 0

    def __enter__(self) -> Crowd:
        self._thread.start()
        deadline = time.monotonic() + 30
        while self.came < self._count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as ready:
            missing = self._count
            while not self._end.is_set():
                for _ in range(missing):
                    with suppress(OSError):
                        peer = self._connect()
                        ready.register(peer, selectors.EVENT_READ)
                        missing -= 1
                        self.came += 1
                        peer.sendall(self._says)
                for key, _ in ready.select(0.05):
                    ready.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    missing += 1
            for key in list(ready.get_map().values()):
                if key.fileobj is not ready:
                    key.fileobj.close()  # type: ignore[union-attr]


@pytest.fixture
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """For silent peers."""
    found = int(getattr(request, "param", door.MAX_SILENT))
    monkeypatch.setattr(door, "MAX_SILENT", found)
    return found


@pytest.fixture
def holder(tmp_path: Path, room: int) -> Iterator[Holder]:
    with adapter_holder(tmp_path / "holder", patience=PATIENCE) as holder:
        tenants = policy(tenants=(TENANT, "tenant-2"))
        holder.store.publish("a", peft_files(D, RANK, leaves=("o",)), base_model="base", policy=tenants)
        yield holder


@contextmanager
def reached(holder: Holder, tmp_path: Path, how: str) -> Iterator[tuple[Connector, Connector]]:
    """As a peer without a certificate reaches it, and as an honest key holder does."""
    if how == "unix":
        yield unix_connector(holder.socket), unix_connector(holder.socket)
        return
    authority = Authority(tmp_path)
    with over_tls(holder, authority, patience=PATIENCE) as port:
        contexts = of_files(authority.issue(TENANT), client_context)
        honest = TlsConnector("127.0.0.1", port, contexts, QUICK.connect_s)
        yield lambda: socket.create_connection(("127.0.0.1", port), timeout=QUICK.connect_s), honest


@pytest.mark.parametrize("how", ["unix", "mtls"])
@pytest.mark.parametrize("says", [b"", b"\x16"], ids=["silent", "one-byte"])
@pytest.mark.parametrize("room", [door.MAX_SILENT, 64], ids=["all-fit", "turned-away"], indirect=True)
def test_an_honest_key_holder_is_served_beside_a_crowd_that_comes_again_and_again(
    *, tmp_path: Path, holder: Holder, burn_log: BurnLog, how: str, says: bytes, room: int
) -> None:
    """Its greeting and its answers have the same few seconds that they have when nobody else is there.

    On a busy machine so many may come between its connection and its first word that it is the oldest one who
    has said nothing: it comes again then, as a sampler does.
    """

    def greeted(honest: Connector, tries: int = 3) -> RemoteKeyHolder:
        try:
            return RemoteKeyHolder(honest, Wanted(TENANT, "a"), burn_log, QUICK)
        except HeUnavailable as error:
            if error.code != HOLDER_ABSENT or tries == 1:
                raise
            return greeted(honest, tries - 1)

    with reached(holder, tmp_path, how) as (anybody, honest), Crowd(200, anybody, says) as crowd:
        for _ in range(3):
            private = greeted(honest)
            private.prepare(OUT)
            for _ in range(3):
                product = private.products([(OUT, np.ones((1, D), dtype=np.float32))])[0]
                assert product.shape == (1, RANK)
            private.close()
        turned_away = holder.service.counters["turned away"]
    assert crowd.came >= 200
    assert bool(turned_away) == (bool(says) or room < 200)


def test_no_tenant_takes_all_places(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_OF_TENANT", 3)
    monkeypatch.setattr(places, "MAX_GREETED", 4)

    def greeted(tenant: str, adapter: str = "a") -> Connection:
        return Connection(unix_connector(holder.socket), Wanted(tenant, adapter), QUICK)

    def refused(tenant: str, words: str) -> None:
        with pytest.raises(HeUnavailable, match=words) as raised:
            greeted(tenant)
        assert raised.value.code == HOLDER_ABSENT

    for _ in range(9):  # whoever is refused keeps no place
        with pytest.raises(HeUnavailable) as raised:
            greeted(TENANT, "none")
        assert raised.value.code == NOT_ALLOWED
    mine = [greeted(TENANT) for _ in range(3)]
    refused(TENANT, "connections of this tenant")
    theirs = greeted("tenant-2")
    refused("tenant-2", "no place is left")
    mine.pop().close()
    until(lambda: holder.service.places._of_tenant[TENANT] == 2)
    greeted("tenant-2").close()
    until(lambda: holder.service.places._of_tenant["tenant-2"] == 1)
    mine.append(greeted(TENANT))
    for one in (*mine, theirs):
        one.close()
    until(lambda: not holder.service.places._of_tenant)


def test_a_peer_that_takes_no_welcome_keeps_no_place(
    tmp_path: Path, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("tensafe_gpu.adapter_holder.listener.send", gone)
    with pytest.raises(HeUnavailable):
        Connection(unix_connector(holder.socket), Wanted(TENANT, "a"), QUICK)
    until(lambda: not holder.service.places._of_tenant)


def test_a_host_that_is_gone_without_a_word_is_looked_for(holder: Holder, tmp_path: Path) -> None:
    """Else its connections keep its tenant's places for an hour. The kernel tells of the timer."""
    with reached(holder, tmp_path, "mtls") as (_, honest):
        connection = Connection(honest, Wanted(TENANT, "a"), QUICK)
        port = connection._sock.getpeername()[1]

        def timers() -> list[str]:
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            return [row[5][:2] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"]

        until(lambda: timers() == ["02"])  # keepalive's, once nothing waits for an acknowledgement
        connection.close()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def visitor(source: str) -> Visitor:
    return Visitor(socket.socket(), source, 0.0)


def test_the_source_with_most_peers_loses_its_oldest() -> None:
    waiting, honest = Waiting(4), visitor("honest")
    crowd = [visitor("crowd") for _ in range(6)]
    assert waiting.enter(honest) is None
    out = [waiting.enter(one) for one in crowd]
    assert out == [None, None, None, *crowd[:3]]
    assert waiting.leave(honest)
    assert not waiting.leave(crowd[0])
    assert waiting.oldest() is crowd[3]
    assert [waiting.turn_away() for _ in range(4)] == [*crowd[3:], None]


def test_without_a_free_descriptor_the_oldest_silent_peer_goes(
    holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the adapter holder lives on."""
    accept, failures, accepted = socket.socket.accept, list[OSError](), list[object]()

    def failing(sock: socket.socket) -> object:
        if failures:
            raise failures.pop()
        accepted.append(found := accept(sock))
        return found

    monkeypatch.setattr(socket.socket, "accept", failing)
    silent = unix_connector(holder.socket)()
    until(lambda: bool(accepted))
    failures.append(OSError(24, "too many open files"))
    Connection(unix_connector(holder.socket), Wanted(TENANT, "a"), QUICK).close()
    silent.settimeout(5)
    assert silent.recv(1) == b""
    silent.close()
