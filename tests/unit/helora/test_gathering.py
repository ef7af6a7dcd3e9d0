"""Several requests at once: each has its own answer, its own end and its own time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path

import pytest

from tensafe_gpu.helora.cores import on_one_core
from tensafe_gpu.helora.exchange import POLL_S, Exchange, gather
from tensafe_gpu.helora.frames import (
    HEADER,
    TO_ADAPTER_HOLDER,
    TO_KEY_HOLDER,
    VERSION,
    FrameError,
    Kind,
    PeerGone,
    PeerSlow,
    receive,
    send,
)

TIME_S = 0.6
LARGE = bytes(range(256)) * (1 << 13)
"""2 MiB: far more than a socket takes by itself."""
Peer = Callable[[socket.socket], object]


class Of(Exchange):
    """An exchange that counts what is done meanwhile, as `ports.Asked`."""

    drawn = looks = 0

    def advance(self, *, send_only: bool = False) -> bool:
        self.looks += 1
        return super().advance(send_only=send_only)

    def meanwhile(self) -> bool:
        self.drawn += 1
        self.waited_for()
        return False

    def answers(self) -> Sequence[object]:
        return [self.frame()]


@pytest.fixture
def asked() -> Iterator[Callable[..., Of]]:
    """Begins a request to a peer that does what it is given, in a thread."""
    open_: list[socket.socket] = []

    def ask(peer: Peer, payload: bytes = b"z", limit_s: float = inf, poll_s: float = POLL_S) -> Of:
        mine, theirs = socket.socketpair()
        open_.extend((mine, theirs))

        def run() -> None:
            with suppress(OSError, PeerGone, PeerSlow):
                peer(theirs)

        threading.Thread(target=run, daemon=True).start()
        one = Of(mine, Kind.PRODUCTS, 7, [payload], TO_KEY_HOLDER, TIME_S, limit_s, poll_s)
        one.advance(send_only=True)
        return one

    yield ask
    for sock in open_:
        sock.close()


def answering(payload: bytes, once: Callable[[], object] = lambda: None) -> Peer:
    def peer(sock: socket.socket) -> None:
        frame = receive(sock, TO_ADAPTER_HOLDER, idle_s=5, frame_s=5)
        once()
        send(sock, Kind.PRODUCTS_REPLY, frame.request, [payload], 5)

    return peer


def silent(sock: socket.socket) -> None:
    """Takes nothing and says nothing."""


def trickling(sock: socket.socket) -> None:
    sock.sendall(HEADER.pack(b"TSHE", VERSION, Kind.PRODUCTS_REPLY, 0, 7, 1000))
    for _ in range(1000):
        sock.sendall(b"x")
        time.sleep(0.005)


def gone(sock: socket.socket) -> None:
    receive(sock, TO_ADAPTER_HOLDER, idle_s=5, frame_s=5)
    sock.close()


def other(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")


def test_all_are_on_their_way_before_any_is_answered(asked: Callable[..., Of]) -> None:
    """The answers come in the other order than the requests went."""
    all_there, said = threading.Barrier(5), [threading.Event() for _ in range(6)]
    said[5].set()

    def in_turn(n: int) -> Callable[[], object]:
        def once() -> None:
            all_there.wait(5)
            said[n + 1].wait(5)
            said[n].set()

        return once

    payloads = [*(bytes([n]) * (n + 1) for n in range(4)), LARGE]
    many = [asked(answering(payload, in_turn(n)), payload) for n, payload in enumerate(payloads)]
    gather(many)
    assert [bytes(one.frame().payload) for one in many] == payloads
    assert {one.frame().request for one in many} == {7}
    assert {one.drawn for one in many} == {1}
    gather([])


@pytest.mark.parametrize(
    ("peer", "payload", "error"),
    [
        (silent, b"z", PeerSlow),
        (silent, LARGE, PeerSlow),
        (trickling, b"z", PeerSlow),
        (gone, b"z", PeerGone),
        (other, b"z", FrameError),
        (answering(b""), b"z", None),
    ],
)
def test_one_that_fails_or_hangs_costs_the_others_nothing_and_all_that_hang_hang_at_once(
    asked: Callable[..., Of], peer: Peer, payload: bytes, error: type[Exception] | None
) -> None:
    bad = [asked(peer, payload) for _ in range(6)]
    good = [asked(answering(LARGE), LARGE), asked(answering(b"ok"))]
    began = time.monotonic()
    gather([*bad, *good])
    assert time.monotonic() - began < 4 * TIME_S  # and not 6; a trickle has its beginning and its rest
    assert [len(one.frame().payload) for one in good] == [len(LARGE), 2]
    for one in bad:
        if error is None:
            assert one.frame().payload == b""
            continue
        with pytest.raises(error):
            one.frame()


def test_all_of_an_exchange_together_has_a_limit_too(asked: Callable[..., Of]) -> None:
    """A peer that begins late and then dribbles is in time for each part, and too late for the whole."""

    def late(sock: socket.socket) -> None:
        time.sleep(0.7 * TIME_S)
        trickling(sock)

    one, other = asked(late, limit_s=0.9 * TIME_S), asked(late)
    began = time.monotonic()
    gather([one])
    assert 0.8 * TIME_S < time.monotonic() - began < 1.2 * TIME_S
    gather([other])
    assert time.monotonic() - began > 1.5 * TIME_S
    for each in (one, other):
        with pytest.raises(PeerSlow):
            each.frame()
    good = asked(answering(b"ok", lambda: time.sleep(0.1)))
    gather([good])
    assert 0.1 <= good.took_s < TIME_S


def test_what_its_thread_did_before_it_waits_is_not_the_peers_time(asked: Callable[..., Of]) -> None:
    """A layer is computed in between, which may take longer than an answer is waited for."""
    said = threading.Event()
    good = asked(answering(b"ok", lambda: said.wait(5)), limit_s=TIME_S)
    silent_ = asked(silent, limit_s=TIME_S / 2)
    time.sleep(1.2 * TIME_S)
    threading.Timer(0.1, said.set).start()
    began = time.monotonic()
    gather([good, silent_])
    assert 0.4 * TIME_S < time.monotonic() - began < 0.9 * TIME_S
    assert good.frame().payload == b"ok"
    assert 0.05 < good.took_s < 0.5 * TIME_S
    with pytest.raises(PeerSlow):
        silent_.frame()


def test_what_nobody_waited_for_and_what_was_closed_has_no_answer(asked: Callable[..., Of]) -> None:
    left = asked(silent)
    with pytest.raises(PeerSlow):
        left.frame()
    left._sock.close()
    gather([left])
    with pytest.raises(PeerGone):
        left.frame()


def test_who_shares_a_core_with_its_peer_sleeps_until_the_answer_is_there(asked: Callable[..., Of]) -> None:
    """Each look would take the core from the peer."""
    one = asked(answering(b"y", lambda: time.sleep(0.05)), poll_s=0.0)
    gather([one])
    assert bytes(one.frame().payload) == b"y"
    assert one.looks <= 2  # to send, and when there is something


CONNECTED = """
import os, socket, sys
os.sched_setaffinity(0, {int(sys.argv[2])})
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
sys.stdin.read()
"""


def test_one_core_for_both_is_what_their_processes_may_run_on(tmp_path: Path) -> None:
    mine = os.sched_getaffinity(0)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door"))
        door.listen()
        for core in sorted(mine)[:2]:
            command = [sys.executable, "-c", CONNECTED, str(tmp_path / "door"), str(core)]
            peer = subprocess.Popen(command, stdin=subprocess.PIPE)
            sock, _ = door.accept()
            try:
                os.sched_setaffinity(0, {min(mine)})
                assert on_one_core(sock) is (core == min(mine))
                os.sched_setaffinity(0, mine)
                assert on_one_core(sock) is (len(mine) == 1)
            finally:
                os.sched_setaffinity(0, mine)
                sock.close()
                peer.communicate()
        assert not on_one_core(sock)  # closed: not known
