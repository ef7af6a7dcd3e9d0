"""A greeted peer gets no memory for what it announces: bytes bring their own, and its adapter bounds them."""

from __future__ import annotations

import fcntl
import json
import struct
import termios
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from socket import socket

import numpy as np
import pytest

from tensafe_gpu.adapter_holder import listener, service
from tensafe_gpu.adapter_holder.listener import Patience
from tensafe_gpu.adapter_holder.places import MAX_OF_TENANT
from tensafe_gpu.adapter_holder.room import SMALL_BYTES, Room
from tensafe_gpu.helora import frames
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Connection, Wanted, unix_connector
from tensafe_gpu.helora.frames import HEADER, TO_ADAPTER_HOLDER, TO_KEY_HOLDER, VERSION, Kind, receive
from tensafe_gpu.helora.limits import request_limits
from tensafe_gpu.helora.messages import b_bytes, pack_begin, pack_whole_rows
from tensafe_gpu.helora.parameters import MAX_TOKENS, N
from tensafe_gpu.helora.ports import GARBAGE, HOLDER_ABSENT, NOT_ALLOWED, AdapterInfo, HeUnavailable
from tensafe_gpu.helora.public_keys import keys_of_block
from tests.support.helora import QUICK, TENANT, Holder, PlainReference, adapter_holder, peft_files, policy
from tests.support.holder_process import HolderProcess

WIDTH, RANK = 896, 16
OUT = "model.layers.0.self_attn.o"
OTHER = "tenant-2"
MIB = 1 << 20


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HolderProcess]:
    folder = tmp_path_factory.mktemp("memory")
    (folder / "peft").mkdir()
    for name, content in peft_files(WIDTH, RANK).items():
        (folder / "peft" / name).write_bytes(content)
    process = HolderProcess(folder / "holder")
    process.publish("a", folder / "peft", base_model="base", tenant=TENANT, tokens_per_site=10_000)
    yield process
    process.kill()


def greeted(holder: HolderProcess) -> tuple[socket, AdapterInfo]:
    connection = Connection(unix_connector(holder.socket), Wanted(TENANT, "a"), QUICK)
    return connection._sock, connection.info


def announced(kind: Kind, size: int) -> bytes:
    return HEADER.pack(b"TSHE", VERSION, kind, 0, 2, size)


def read_by(sock: socket) -> None:
    """Until the adapter holder has read all that was sent."""
    until = time.monotonic() + 20
    while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]:
        assert time.monotonic() < until, "nobody reads"
        time.sleep(0.01)


def resident(holder: HolderProcess) -> int:
    assert holder.process is not None
    (line,) = [
        one
        for one in Path(f"/proc/{holder.process.pid}/status").read_text().splitlines()
        if one.startswith("VmRSS:")
    ]
    return int(line.split()[1]) * 1024


def told(sock: socket) -> tuple[str, str]:
    body = json.loads(bytes(receive(sock, TO_KEY_HOLDER, idle_s=5, frame_s=5).payload))
    return body["code"], body["message"]


def test_headers_alone_take_no_memory(holder: HolderProcess) -> None:
    """Every place of a tenant, and each announces the longest frame that its adapter allows."""
    with ExitStack() as stack:
        peers = [greeted(holder) for _ in range(MAX_OF_TENANT)]
        for sock, _ in peers:
            stack.enter_context(sock)
        before, announcing = resident(holder), 0
        for number, (sock, info) in enumerate(peers):
            kind = (Kind.PRODUCTS, Kind.DIRECT)[number % 2]
            size = request_limits(info)[kind]
            sock.sendall(announced(kind, size))
            announcing += size
        for sock, _ in peers:
            read_by(sock)
        time.sleep(0.5)
        assert announcing > 1000 * MIB
        assert resident(holder) - before < 32 * MIB


def test_memory_comes_with_the_bytes(holder: HolderProcess) -> None:
    sock, info = greeted(holder)
    with sock:
        before = resident(holder)
        sock.sendall(announced(Kind.DIRECT, request_limits(info)[Kind.DIRECT]))
        sent = 0
        for part in (4 * MIB, 8 * MIB, 8 * MIB):
            sock.setblocking(True)
            sock.sendall(bytes(part))
            read_by(sock)
            sent += part
            assert resident(holder) - before < sent + 8 * MIB
        assert resident(holder) - before > sent // 2  # so what is measured is where they are


@pytest.mark.parametrize("kind", [one for one in TO_ADAPTER_HOLDER if one is not Kind.HELLO])
def test_a_frame_longer_than_the_adapter_makes_it_ends_the_connection(
    holder: HolderProcess, kind: Kind
) -> None:
    """The byte too many never comes: whoever waited for it would say that it took too long."""
    sock, info = greeted(holder)
    most = request_limits(info)[kind]
    assert most == TO_ADAPTER_HOLDER[kind] if kind is Kind.B_REQUEST else most < TO_ADAPTER_HOLDER[kind]
    with sock:
        sock.sendall(announced(kind, most + 1))
        code, message = told(sock)
    assert code == GARBAGE
    assert f"at most {most}" in message


def test_the_longest_frames_of_a_key_holder_are_within_the_limits(tmp_path: Path) -> None:
    """As many tokens as a request takes, over two sites; one more is refused before anything is sent."""
    with adapter_holder(tmp_path / "h") as holder, closing(BurnLog(tmp_path / "burned.db")) as burn_log:
        _, adapter = holder.store.publish("a", peft_files(64, 8), base_model="base", policy=policy())
        plain = PlainReference(adapter)
        sites = [shape.site for shape in adapter.info.sites]
        x = np.random.default_rng(3).standard_normal((MAX_TOKENS // 2 + 1, 64)).astype(np.float32)
        with closing(holder.key_holder(burn_log)) as private:
            for site in sites:
                private.prepare(site)
            with pytest.raises(ValueError, match="at most 4096 tokens"):
                private.products([(sites[0], x), (sites[1], x[1:])])
            request = [(site, x[1:]) for site in sites]
            for mine, theirs in zip(private.products(request), plain.products(request), strict=True):
                assert np.array_equal(mine, theirs)
            request = [(sites[0], x[:256])]
            assert np.array_equal(private.direct_products(request)[0], plain.products(request)[0])


BEGUN = 8 * (RANK * 6 * N + RANK * 64)
"""What a block of `o` takes at a width of 64."""


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Holder]:
    """An adapter of two tenants, at a holder that is impatient."""
    with adapter_holder(tmp_path / "shared", patience=Patience(5, 30, 3, 0.2)) as found:
        files = peft_files(64, RANK)
        found.store.publish("a", files, base_model="base", policy=policy(tenants=(TENANT, OTHER)))
        yield found


def connected(holder: Holder, tenant: str) -> Connection:
    return Connection(unix_connector(holder.socket), Wanted(tenant, "a"), QUICK)


def emptied(room: Room) -> None:
    until = time.monotonic() + 10
    while room.taken_bytes():
        assert time.monotonic() < until, "never given back"
        time.sleep(0.01)


def test_a_tenant_that_fills_its_half_with_frames_keeps_nobody_else_waiting(
    shared: Holder, tmp_path: Path
) -> None:
    room = shared.service.frame_room = Room(16 * MIB)
    with ExitStack() as stack, closing(BurnLog(tmp_path / "burned.db")) as burn_log:
        for _ in range(12):
            slow = connected(shared, TENANT)
            stack.callback(slow.close)
            slow._sock.setblocking(True)
            slow._sock.sendall(announced(Kind.PRODUCTS, MIB) + bytes(4096))
        until = time.monotonic() + 5
        while room.taken_bytes() < 8 * MIB:
            assert time.monotonic() < until
            time.sleep(0.01)
        private = stack.enter_context(closing(shared.key_holder(burn_log, tenant=OTHER)))
        private.prepare(OUT)
        x = np.ones((512, 64), dtype=np.float32)
        assert private.products([(OUT, x)])[0].shape == (512, RANK)
        assert room.taken_bytes() >= 8 * MIB  # they still have their time
    emptied(room)


@pytest.mark.parametrize("in_time", [True, False])
def test_a_frame_for_which_there_is_no_room_waits_for_some_time(shared: Holder, in_time: bool) -> None:
    room = shared.service.frame_room = Room(4 * MIB)
    room.take(TENANT, 2 * MIB)
    connection = connected(shared, TENANT)
    with closing(connection):
        sock = connection._sock
        sock.setblocking(True)
        sock.sendall(announced(Kind.PRODUCTS, MIB))
        time.sleep(0.3)
        if in_time:
            room.give_back(TENANT, 2 * MIB)
            sock.sendall(bytes(MIB))
        code, message = told(sock)
    assert (code, "try again" in message) == ((GARBAGE, False) if in_time else (HOLDER_ABSENT, True))
    if not in_time:
        room.give_back(TENANT, 2 * MIB)
    emptied(room)


def test_whoever_hangs_up_while_there_is_no_room_leaves_at_once(
    shared: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_ONLINE_S", 30.0)
    room = shared.service.frame_room = Room(4 * MIB)
    room.take(TENANT, 2 * MIB)
    connection = connected(shared, TENANT)
    connection._sock.setblocking(True)
    connection._sock.sendall(announced(Kind.PRODUCTS, MIB) + bytes(100))
    time.sleep(0.3)
    assert shared.service.places._of_tenant[TENANT] == 1
    connection.close()
    until = time.monotonic() + 5
    while shared.service.places._of_tenant[TENANT]:
        assert time.monotonic() < until, "its place is kept"
        time.sleep(0.01)
    room.give_back(TENANT, 2 * MIB)
    emptied(room)


def test_b_is_counted_while_it_is_sent(shared: Holder) -> None:
    """Its request has two bytes, and it may have 256 MiB."""
    taken = list[int]()

    class Counted(Room):
        def take(self, tenant: str, size_bytes: int, wait_s: float = 0.0) -> None:
            super().take(tenant, size_bytes, wait_s)
            taken.append(size_bytes)

    room = shared.service.frame_room = Counted(2 * SMALL_BYTES)
    shared.store.publish("wide", peft_files(1100, RANK), base_model="base", policy=policy())
    connection = Connection(unix_connector(shared.socket), Wanted(TENANT, "wide"), QUICK)
    with closing(connection):
        sizes = [b_bytes(shape) for shape in connection.info.sites]
        connection.ask(Kind.B_REQUEST, [bytes(2)], Kind.B_REPLY, sizes[0], 5)
        assert taken == sizes[:1]
        emptied(room)  # while the connection stands


def begin(connection: Connection, block_id: bytes) -> None:
    b = np.zeros((keys_of_block(64), 4, N), dtype=np.uint32)
    number = [shape.site for shape in connection.info.sites].index(OUT)
    connection.ask(Kind.BLOCK_BEGIN, pack_begin(number, block_id, b), Kind.ACCEPTED, 0, 5)


def test_preparing_waits_for_room_and_what_was_begun_and_left_gives_its_own(
    shared: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused at once, an adapter that is being opened would fail for good."""
    monkeypatch.setattr(service, "LEFT_S", 0.5)
    room = shared.service.block_room = Room(2 * BEGUN)
    left = connected(shared, TENANT)
    begin(left, bytes(16))
    with (
        closing(BurnLog(tmp_path / "burned.db")) as burn_log,
        closing(shared.key_holder(burn_log)) as private,
    ):
        private.prepare(OUT)
        assert private.prepared()[OUT] == N
    parts = pack_whole_rows(bytes(16), 0, np.ones((1, 2, 3, N), dtype=np.uint32))
    with pytest.raises(HeUnavailable, match="not begun"):
        left.ask(Kind.BLOCK_WHOLE_ROWS, parts, Kind.ACCEPTED, 0, 5)
    left.close()
    emptied(room)


def test_blocks_that_are_begun_and_left_are_refused_beyond_a_tenants_half(
    shared: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "ROOM_S", 0.2)
    room = shared.service.block_room = Room(4 * BEGUN)
    first, second, third = (connected(shared, TENANT) for _ in range(3))
    other = connected(shared, OTHER)

    begin(first, bytes(16))
    begin(second, b"1" * 16)
    with pytest.raises(HeUnavailable) as raised:
        begin(third, b"2" * 16)
    assert raised.value.code == HOLDER_ABSENT
    assert "try again" in str(raised.value)
    begin(other, b"3" * 16)
    with pytest.raises(HeUnavailable, match="has been used"):
        begin(other, b"3" * 16)  # which gives up the block before
    assert room.taken_bytes() == 2 * BEGUN
    first.close()
    until = time.monotonic() + 5
    while room.taken_bytes() > BEGUN:
        assert time.monotonic() < until
        time.sleep(0.01)
    begin(third, b"2" * 16)  # the refused one's id was not used up, nor its connection ended
    for one in (second, third, other):
        one.close()
    emptied(room)


@pytest.mark.parametrize("why", ["its peer has gone", "its adapter was revoked"])
@pytest.mark.parametrize("what", ["block", "B"])
def test_what_waits_for_room_ends_with_its_right_to_it(
    shared: Holder, monkeypatch: pytest.MonkeyPatch, what: str, why: str
) -> None:
    """A place of its tenant's, and for an hour one of its blocks, would be nobody's."""
    opened = list[bytes]()
    open_block = shared.service.accepted.open_block
    monkeypatch.setattr(
        shared.service.accepted, "open_block", lambda *given: (opened.append(given[2]), open_block(*given))[1]
    )
    shared.store.publish("wide", peft_files(1100, RANK), base_model="base", policy=policy())
    full = Room(2 * MIB)
    for tenant in ("x", "y"):
        full.take(tenant, MIB)
    if what == "B":
        shared.service.frame_room = full
    else:
        shared.service.block_room = full
    connection = Connection(unix_connector(shared.socket), Wanted(TENANT, "wide"), QUICK)
    b = np.zeros((keys_of_block(1100), 4, N), dtype=np.uint32)
    kind, parts = (
        (Kind.B_REQUEST, [bytes(2)]) if what == "B" else (Kind.BLOCK_BEGIN, pack_begin(0, bytes(16), b))
    )
    connection.begin(kind, parts, Kind.ERROR, 0, 5)
    time.sleep(0.3)
    assert shared.service.places._of_tenant[TENANT] == 1
    if why == "its peer has gone":
        connection.close()
    else:
        shared.store.revoke("wide")
    until = time.monotonic() + 5
    while shared.service.places._of_tenant[TENANT]:
        assert time.monotonic() < until, "its place is kept"
        time.sleep(0.01)
    assert opened == []
    connection.close()


def test_no_block_is_opened_of_what_was_revoked_while_it_waited(
    shared: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that is not looked at before there is room."""
    monkeypatch.setattr(service, "ROOM_S", 10.0)
    connection = connected(shared, TENANT)
    real = shared.service.block_room.take

    def take(tenant: str, size_bytes: int, wait_s: float = 0.0) -> None:
        shared.store.revoke("a")
        real(tenant, size_bytes, wait_s)

    monkeypatch.setattr(shared.service.block_room, "take", take)
    with pytest.raises(HeUnavailable) as raised:
        begin(connection, bytes(16))
    assert raised.value.code == NOT_ALLOWED
    connection.close()
    emptied(shared.service.block_room)


def test_no_frame_outlives_its_answer(
    shared: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that then says nothing for an hour would keep its memory."""
    given = list[weakref.ref[memoryview]]()

    def tracked(size: int) -> memoryview:
        payload = room_of(size)
        if size > MIB:
            given.append(weakref.ref(payload))
        return payload

    room_of = frames.room
    monkeypatch.setattr(frames, "room", tracked)
    with (
        closing(BurnLog(tmp_path / "burned.db")) as burn_log,
        closing(shared.key_holder(burn_log)) as private,
    ):
        private.prepare(OUT)
        private.products([(OUT, np.ones((4096, 64), dtype=np.float32))])
        assert len(given) > 1
        until = time.monotonic() + 5
        while any(one() is not None for one in given):
            assert time.monotonic() < until, "a frame is kept"
            time.sleep(0.01)
        emptied(shared.service.frame_room)  # while the connection stands
