"""Peers that misbehave, and what goes over the wire: nothing that an adapter holder must not have."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from tensafe.contracts.errors import ConfigurationError
from tensafe_gpu.adapter_holder import places, service
from tensafe_gpu.adapter_holder import store as store_module
from tensafe_gpu.adapter_holder.listener import Listener, Patience
from tensafe_gpu.adapter_holder.sockets import tcp_listener
from tensafe_gpu.helora import direct as direct_module
from tensafe_gpu.helora import frames, messages, preparation
from tensafe_gpu.helora.accepted_records import Range
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Connection, Timeouts, TlsConnector, Wanted, unix_connector
from tensafe_gpu.helora.direct import DirectRequest, layout_of
from tensafe_gpu.helora.direct_messages import DirectEntry, pack_direct
from tensafe_gpu.helora.frames import HEADER, TO_ADAPTER_HOLDER, TO_KEY_HOLDER, VERSION, Kind
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.parameters import PARAMETERS, PRIMES
from tensafe_gpu.helora.ports import (
    CERTIFICATE_REFUSED,
    GARBAGE,
    HOLDER_ABSENT,
    NOT_ALLOWED,
    PARAMETERS_REFUSED,
    TIMEOUT,
    VERSION_MISMATCH,
    HeUnavailable,
)
from tensafe_gpu.helora.quantise import quantised_tokens
from tensafe_gpu.helora.renewal import of_files
from tensafe_gpu.helora.seal_library import KEY_PRIMES
from tensafe_gpu.helora.tls import client_context, secured, server_context
from tests.support.certificates import Authority
from tests.support.helora import TENANT, Holder, adapter_holder, over_tls, peft_files, policy
from tests.support.helora_attacks import ternary_key
from tests.support.tap import Tap, split

D, RANK = 64, 8
OUT = "model.layers.0.self_attn.o"
SHORT = Timeouts(connect_s=2, online_s=1, offline_s=5)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    patience = Patience(greeting_s=0.4, idle_s=30, frame_s=0.4)
    with adapter_holder(tmp_path / "holder", patience=patience) as holder:
        holder.store.publish("a", peft_files(D, RANK), base_model="base", policy=policy())
        yield holder


def hello(**changed: object) -> bytes:
    fields = {"parameters": "", "tenant": TENANT, "adapter": "a", "version": None} | changed
    payload = json.dumps(fields).encode()
    return HEADER.pack(b"TSHE", VERSION, Kind.HELLO, 0, 1, len(payload)) + payload


@pytest.mark.parametrize("cut", [1, 15, 16, 40], ids=["header", "header's end", "body", "body's end"])
@pytest.mark.parametrize("greeted", [False, True])
def test_a_frame_that_is_cut_off_is_told_where_it_arrives(
    holder: Holder, caplog: pytest.LogCaptureFixture, greeted: bool, cut: int
) -> None:
    """Its sender has gone; whoever runs the adapter holder may want to know why."""
    sock = unix_connector(holder.socket)()
    whole = hello(parameters=PARAMETERS)
    if greeted:
        sock.sendall(whole)
        frames.receive(sock, TO_KEY_HOLDER, idle_s=3, frame_s=3)
        whole = HEADER.pack(b"TSHE", VERSION, Kind.PRODUCTS, 0, 2, 1000) + bytes(1000)
    with caplog.at_level("WARNING"):
        sock.sendall(whole[:cut])
        sock.close()
        until = time.monotonic() + 5
        while not holder.service.counters["cut frames"]:
            assert time.monotonic() < until
            time.sleep(0.01)
        while holder.service.places._of_tenant[TENANT]:
            time.sleep(0.01)
    assert "connection dropped: cut inside a frame" in caplog.messages
    sock = unix_connector(holder.socket)()
    sock.close()  # between two frames, which is how a peer ends
    time.sleep(0.1)
    assert holder.service.counters["cut frames"] == 1


@pytest.mark.parametrize("size_bytes", [1 << 17, 1 << 20, 64 << 20])
@pytest.mark.parametrize("tls", [False, True], ids=["unix", "tls"])
def test_who_sends_a_frame_that_is_too_long_hears_why(
    holder: Holder, tmp_path: Path, tls: bool, size_bytes: int
) -> None:
    """Also where it is cut off in the midst of it: it would take the other side for gone, and ask again."""
    authority = Authority(tmp_path)
    with over_tls(holder, authority) as port:
        connector = unix_connector(holder.socket)
        if tls:
            files = of_files(authority.issue(TENANT), client_context)
            connector = TlsConnector("127.0.0.1", port, files)
        with closing(Connection(connector, Wanted(TENANT, "a"), SHORT)) as connection:
            with pytest.raises(HeUnavailable, match=f"a frame of {size_bytes} bytes; B_REQUEST") as refused:
                connection.ask(Kind.B_REQUEST, [bytes(size_bytes)], Kind.B_REPLY, 1 << 20, 5)
            assert refused.value.code == GARBAGE
            assert not connection.usable


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"\U0001f600" * 1015: 1}, "HELLO|Hello has fields"),
        ({"parameters": PARAMETERS, "version": 10**3000}, "version"),
        ('{"parameters": "p", "tenant": "zzz", "tenant": "tenant-1", "adapter": "a"}', "twice"),
    ],
    ids=["long names", "a version without end", "a field twice"],
)
def test_a_greeting_that_is_none_is_refused_in_a_frame_that_fits(
    holder: Holder, body: dict[str, object] | str, words: str
) -> None:
    payload = body.encode() if isinstance(body, str) else json.dumps(body, ensure_ascii=False).encode()
    if isinstance(body, dict) and "version" in body:
        payload = json.dumps({"tenant": TENANT, "adapter": "a"} | body).encode()
    code, message = answer_to(holder, HEADER.pack(b"TSHE", VERSION, Kind.HELLO, 0, 1, len(payload)) + payload)
    assert code == GARBAGE
    assert re.search(words, message)


def answer_to(holder: Holder, sent: bytes) -> tuple[str, str]:
    """Code and message of the refusal; the connection is then closed."""
    sock = unix_connector(holder.socket)()
    sock.sendall(sent)
    frame = frames.receive(sock, TO_KEY_HOLDER, idle_s=3, frame_s=3)
    assert frame.kind is Kind.ERROR
    with pytest.raises(frames.PeerGone):
        frames.receive(sock, TO_KEY_HOLDER, idle_s=3, frame_s=3)
    sock.close()
    body = json.loads(bytes(frame.payload))
    return body["code"], body["message"]


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", GARBAGE, "not the HE-LoRA protocol"),
        (HEADER.pack(b"TSHE", 9, 1, 0, 0, 0), VERSION_MISMATCH, "version 9"),
        (HEADER.pack(b"TSHE", VERSION, Kind.BLOCK_ROWS, 0, 0, 1 << 30), GARBAGE, "at most"),
        (HEADER.pack(b"TSHE", VERSION, Kind.HELLO, 0, 0, 4097), GARBAGE, "at most"),
        (HEADER.pack(b"TSHE", VERSION, Kind.PRODUCTS, 0, 0, 1 << 28), GARBAGE, "at most"),  # once greeted
        (HEADER.pack(b"TSHE", VERSION, Kind.B_REQUEST, 0, 0, 2) + b"\0\0", GARBAGE, "begins with HELLO"),
        (hello(prompt="x"), GARBAGE, "prompt"),
        (hello(parameters="bfv/n2048"), PARAMETERS_REFUSED, "accepts"),
        (hello()[:-5], TIMEOUT, "in time"),
        (b"", TIMEOUT, "in time"),
    ],
)  # fmt: skip
def test_whoever_does_not_speak_the_protocol_is_told_and_dropped(
    holder: Holder,
    burn_log: BurnLog,
    caplog: pytest.LogCaptureFixture,
    sent: bytes,
    code: str,
    words: str,
) -> None:
    caplog.set_level("INFO", "tensafe_gpu.adapter_holder.listener")
    got, message = answer_to(holder, sent)
    assert got == code
    assert words in message
    # The adapter holder's own operator reads it too.
    (line,) = [one for one in caplog.records if one.name.endswith("listener")]
    told = {GARBAGE: "dropped: not the protocol", VERSION_MISMATCH: "dropped: not the protocol"}
    told |= {TIMEOUT: f"dropped: {'slow' if sent else 'silent'} peer", PARAMETERS_REFUSED: "request refused"}
    assert line.getMessage().endswith(told[code])
    assert words in str(vars(line).get("reason", words))
    holder.key_holder(burn_log).close()  # and everybody else goes on


def test_frames_out_of_place_cost_nothing(
    holder: Holder, burn_log: BurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows without a block, an index again, a block id again, a foreign block, words out of range: refused,
    nothing metered, no block's id used up.
    """
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    x = np.ones((3, D), dtype=np.float32)
    private.products([(OUT, x)])
    accepted = holder.service.accepted
    spent, opened = accepted.spent("a", 1, 1), len(accepted._known.blocks)
    connection = private._online
    block = private._supplies[OUT]._cursors[0].block
    z = np.zeros((1, D), dtype=np.uint32)

    def refused(kind: Kind, parts: list) -> str:
        with pytest.raises(HeUnavailable) as raised:
            connection.ask(kind, parts, Kind.ACCEPTED, 0, 2)
        return raised.value.code

    def products(block_id: bytes, first: int) -> list:
        return messages.pack_products([messages.MaskedRange(Range(block_id, first, 1), z)])

    assert refused(Kind.PRODUCTS, products(block.block_id, 2)) == GARBAGE
    assert refused(Kind.PRODUCTS, products(bytes(16), 0)) == VERSION_MISMATCH
    one = PreparingBlock(D, RANK)
    rows = messages.pack_rows(one.block_id, 0, *one.encrypted(0, 1))
    assert refused(Kind.BLOCK_ROWS, rows) == GARBAGE
    whole = messages.pack_whole_rows(one.block_id, 0, one.encrypted_whole(0, 1))
    assert refused(Kind.BLOCK_WHOLE_ROWS, whole) == GARBAGE
    again = messages.pack_begin(1, block.block_id, one.public_halves(connection.nonce))
    assert refused(Kind.BLOCK_BEGIN, again) == GARBAGE
    half = one.public_halves(connection.nonce)
    wrong = half.copy()
    wrong[-1, -1, -1] = KEY_PRIMES[-1]
    assert refused(Kind.BLOCK_BEGIN, messages.pack_begin(1, one.block_id, wrong)) == PARAMETERS_REFUSED
    with closing(DirectRequest()) as request:
        layout = layout_of(D, RANK)
        token = request.encrypted(layout, np.ones(D, dtype=np.int32))
        key = request.public_half(connection.nonce)

        def direct(words: np.ndarray, b: np.ndarray) -> list:
            entries = [DirectEntry(1, *token), DirectEntry(1, words, token[1])]
            return pack_direct(request.key_id, b, entries)

        with monkeypatch.context() as patch:
            patch.setattr(direct_module, "_MAX_NOISE", 1)
            assert refused(Kind.DIRECT, direct(token[0], key)) == PARAMETERS_REFUSED  # too large a site
        words = token[0].copy()
        words[-1, -1, -1] = PRIMES[-1]
        assert refused(Kind.DIRECT, direct(words, key)) == PARAMETERS_REFUSED
        assert refused(Kind.DIRECT, direct(token[0], wrong[-1])) == PARAMETERS_REFUSED
    assert accepted.spent("a", 1, 1) == spent
    assert len(accepted._known.blocks) == opened
    connection.ask(Kind.BLOCK_BEGIN, messages.pack_begin(1, one.block_id, half), Kind.ACCEPTED, 0, 5)
    private.products([(OUT, x)])
    private.close()


def test_ciphertexts_that_are_malformed_or_transparent_are_refused_and_leave_no_block(
    holder: Holder, burn_log: BurnLog
) -> None:
    """A word at its prime, of seeds' and of whole rows; a second polynomial of zeros. Their block is gone."""
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    connection, spent = private._online, holder.service.accepted.spent("a", 1, 1)

    def refused(block: PreparingBlock, kind: Kind, rows: list) -> list[str]:
        begin = messages.pack_begin(1, block.block_id, block.public_halves(connection.nonce))
        connection.ask(Kind.BLOCK_BEGIN, begin, Kind.ACCEPTED, 0, 5)
        codes = []
        for _ in range(2):
            with pytest.raises(HeUnavailable) as raised:
                connection.ask(kind, rows, Kind.ACCEPTED, 0, 5)
            codes.append(raised.value.code)
        return codes

    def cases() -> Iterator[tuple[PreparingBlock, Kind, list]]:
        block = PreparingBlock(D, RANK)
        words, seeds = block.encrypted(0, 1)
        words[0, 1, 5] = PRIMES[1]
        yield block, Kind.BLOCK_ROWS, messages.pack_rows(block.block_id, 0, words, seeds)
        for half, wrong in ((0, PRIMES[2]), (1, PRIMES[2]), (1, 0)):
            block = PreparingBlock(D, RANK)
            whole = block.encrypted_whole(0, 1)
            if wrong:
                whole[0, half, 2, -1] = wrong
            else:
                whole[0, half] = 0
            yield block, Kind.BLOCK_WHOLE_ROWS, messages.pack_whole_rows(block.block_id, 0, whole)

    for case in cases():
        assert refused(*case) == [PARAMETERS_REFUSED, GARBAGE]
    assert holder.service.accepted.spent("a", 1, 1) == spent
    private.prepare(OUT)
    private.products([(OUT, np.ones((3, D), dtype=np.float32))])
    private.close()


def test_a_transparent_reply_is_refused_and_a_sound_one_is_taken(
    holder: Holder, burn_log: BurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose second polynomial is zero: anybody could read it."""

    def transparent(block_id: bytes, words: np.ndarray) -> list:
        open_words = words.copy()
        open_words[:, 1] = 0
        return pack_reply(block_id, open_words)

    pack_reply = service.pack_reply
    private = holder.key_holder(burn_log)
    with monkeypatch.context() as patch:
        patch.setattr(service, "pack_reply", transparent)
        with pytest.raises(HeUnavailable) as raised:
            private.prepare(OUT)
    assert raised.value.code == PARAMETERS_REFUSED
    assert private.prepared()[OUT] == 0
    private.prepare(OUT)
    assert private.products([(OUT, np.ones((1, D), dtype=np.float32))])[0].shape == (1, RANK)
    private.close()


@contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[None]:
    """Listens like an adapter holder, reads, and sends these bytes; None: says nothing."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()

    def serve() -> None:
        peer, _ = listening.accept()
        peer.recv(65536)
        if answer is None:
            peer.recv(65536)
        else:
            peer.sendall(answer)
        peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join(10)
        listening.close()


def welcome(nonce: object) -> bytes:
    """As an adapter holder says it, but for the nonce; None: without one."""
    site = {"site": "s", "d_in": 8, "x_bound": 1, "modules": [{"name": "m", "rank": 1, "d_out": 1}]}
    fields = {
        "name": "a", "version": 1, "digest": "0" * 64, "epoch": 1, "base_model": "b",
        "parameters": PARAMETERS, "tokens_per_site": 1, "sites": [site],
    }  # fmt: skip
    payload = json.dumps(fields if nonce is None else fields | {"nonce": nonce}).encode()
    return HEADER.pack(b"TSHE", VERSION, Kind.WELCOME, 0, 1, len(payload)) + payload


@pytest.mark.parametrize("nonce", [None, "", "00" * 31, "00" * 33, "0g" * 32, 7])
def test_a_nonce_that_is_absent_or_short_is_refused(tmp_path: Path, nonce: object) -> None:
    path, wanted = tmp_path / "s", Wanted(TENANT, "a")
    with answering(path, welcome(nonce)), pytest.raises(HeUnavailable, match="greeting") as raised:
        Connection(unix_connector(path), wanted, Timeouts(0.5, 0.5, 0.5))
    assert raised.value.code == GARBAGE
    path.unlink()
    with answering(path, welcome("00" * 32)):  # any other is taken, and hashed
        Connection(unix_connector(path), wanted, Timeouts(0.5, 0.5, 0.5)).close()


def error_frame(body: dict[str, object]) -> bytes:
    payload = json.dumps(body).encode()
    return HEADER.pack(b"TSHE", VERSION, Kind.ERROR, 0, 1, len(payload)) + payload


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (None, TIMEOUT),
        (b"", HOLDER_ABSENT),
        (b"x" * 16, GARBAGE),
        (HEADER.pack(b"TSHE", VERSION, Kind.WELCOME, 0, 1, 1 << 31), GARBAGE),
        (HEADER.pack(b"TSHE", VERSION, Kind.WELCOME, 0, 1, 2) + b"{}", GARBAGE),
        (HEADER.pack(b"TSHE", VERSION, Kind.ACCEPTED, 0, 1, 0), GARBAGE),
        (HEADER.pack(b"TSHE", VERSION, Kind.WELCOME, 0, 1, 100) + b"{", HOLDER_ABSENT),
        (error_frame({"code": "budget_spent", "message": "m"}), "budget_spent"),
        (error_frame({"code": "made_up", "message": "m"}), GARBAGE),
    ],
)  # fmt: skip
def test_an_adapter_holder_that_answers_otherwise_is_refused(
    tmp_path: Path, burn_log: BurnLog, answer: bytes | None, code: str
) -> None:
    path = tmp_path / "s"
    with answering(path, answer), pytest.raises(HeUnavailable) as raised:
        RemoteKeyHolder(unix_connector(path), Wanted(TENANT, "a"), burn_log, Timeouts(0.5, 0.5, 0.5))
    assert raised.value.code == code


def test_nobody_listening(tmp_path: Path, burn_log: BurnLog) -> None:
    with pytest.raises(HeUnavailable) as raised:
        RemoteKeyHolder(unix_connector(tmp_path / "none"), Wanted(TENANT, "a"), burn_log, SHORT)
    assert raised.value.code == HOLDER_ABSENT


def test_mutual_tls_serves_the_tenant_of_the_certificate(
    tmp_path: Path, holder: Holder, burn_log: BurnLog
) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")

    def connect(
        port: int, name: str, tenant: str, *, days: int = 1, by: Authority = authority
    ) -> RemoteKeyHolder:
        files = by.issue(name, days=days)
        trusted = type(files)(files.certificate, files.key, authority.path)
        connector = TlsConnector("127.0.0.1", port, of_files(trusted, client_context), 2)
        return RemoteKeyHolder(connector, Wanted(tenant, "a"), burn_log, SHORT)

    with over_tls(holder, authority) as port:
        private = connect(port, TENANT, TENANT)
        private.prepare(OUT)
        for _ in range(2):
            assert private.products([(OUT, np.ones((2, D), dtype=np.float32))])[0].shape == (2, RANK)
            time.sleep(0.3)  # so that it is looked at, tickets of TLS and all
            assert private.connected()
        private.close()
        counters = holder.service.counters
        assert (counters["BLOCK_ROWS"], counters["BLOCK_WHOLE_ROWS"]) == (-(-D // 64), 0)
        for wrong in (
            {"name": "tenant-2", "tenant": TENANT},
            {"name": TENANT, "tenant": TENANT, "days": -1},
            {"name": TENANT, "tenant": TENANT, "by": stranger},
        ):
            with pytest.raises(HeUnavailable) as raised:
                connect(port, **wrong)
            other_tenant = wrong["name"] != wrong["tenant"]
            assert raised.value.code == (NOT_ALLOWED if other_tenant else CERTIFICATE_REFUSED)
        connect(port, TENANT, TENANT).close()
    with over_tls(holder, authority, server_days=-1) as port, pytest.raises(HeUnavailable) as raised:
        connect(port, TENANT, TENANT)
    assert raised.value.code == CERTIFICATE_REFUSED
    assert "certificate has expired" in str(raised.value)


@pytest.mark.parametrize("how", ["ends", "ends after its hello", "resets", "is cut", "speaks http"])
def test_a_holder_that_goes_in_the_midst_of_tls_has_gone_and_has_refused_nobody(
    tmp_path: Path, how: str
) -> None:
    """As one that is being replaced does; who was refused would not come again, nor fall back."""
    files = Authority(tmp_path).issue(TENANT)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                if how == "ends":
                    peer.shutdown(socket.SHUT_WR)
                peer.recv(4096)
                if how == "resets":
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif how == "is cut":
                    peer.shutdown(socket.SHUT_RDWR)
                elif how == "speaks http":
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        connector = TlsConnector("127.0.0.1", server.getsockname()[1], of_files(files, client_context))
        with pytest.raises(HeUnavailable) as raised:
            Connection(connector, Wanted(TENANT, "a"), SHORT)
        thread.join()
    assert raised.value.code == (GARBAGE if how == "speaks http" else HOLDER_ABSENT)


def test_a_connection_that_ended_after_a_long_silence_is_a_holder_that_has_gone(
    tmp_path: Path, holder: Holder, burn_log: BurnLog
) -> None:
    """It is seen before a request is sent, and what was prepared is used on the next connection."""
    authority = Authority(tmp_path)
    with over_tls(holder, authority, patience=Patience(2, 0.3, 2)) as port:
        contexts = of_files(authority.issue(TENANT), client_context)
        private = RemoteKeyHolder(
            TlsConnector("127.0.0.1", port, contexts, 2), Wanted(TENANT, "a"), burn_log, SHORT
        )
        private.prepare(OUT)
        time.sleep(1.0)
        assert not private.connected()  # without a request, which would be lost
        with pytest.raises(HeUnavailable) as raised:
            private.products([(OUT, np.ones((1, D), dtype=np.float32))])
        assert raised.value.code == HOLDER_ABSENT
        private.connect_again()
        private.products([(OUT, np.ones((1, D), dtype=np.float32))])
        private.close()


def test_a_tls_handshake_in_dribs_has_one_time_limit(
    tmp_path: Path, holder: Holder, burn_log: BurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then keeps neither side's thread; and the other way round, a holder that dribbles."""
    monkeypatch.setattr(places, "MAX_GREETING", 1)
    authority = Authority(tmp_path)
    with over_tls(holder, authority, patience=Patience(0.5, 30, 2)) as port:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.settimeout(0.05)
            hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
            for byte in hello:
                try:
                    peer.sendall(bytes([byte]))
                    if peer.recv(1) == b"":
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            assert 0.4 < time.monotonic() - began < 3
        files = authority.issue(TENANT)  # the only place is free again
        connector = TlsConnector("127.0.0.1", port, of_files(files, client_context), 2)
        RemoteKeyHolder(connector, Wanted(TENANT, "a"), burn_log, SHORT).close()
    with tcp_listener("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]

        def dribble() -> None:
            peer, _ = listening.accept()
            with peer, suppress(OSError):
                for byte in b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76" + bytes(200):
                    peer.sendall(bytes([byte]))
                    time.sleep(0.05)

        thread = threading.Thread(target=dribble)
        thread.start()
        began = time.monotonic()
        connector = TlsConnector("127.0.0.1", port, of_files(authority.issue(TENANT), client_context), 0.4)
        with pytest.raises(HeUnavailable) as raised:
            RemoteKeyHolder(connector, Wanted(TENANT, "a"), burn_log, SHORT)
        assert raised.value.code == TIMEOUT
        assert time.monotonic() - began < 2
        thread.join()


def test_a_peer_that_reads_in_dribs_over_tls_has_one_time_limit(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    near, far = socket.socketpair()

    def read() -> None:
        sock = secured(near, client_context(authority.issue("t")), 5, server_name="127.0.0.1")
        with sock, suppress(OSError):
            while sock.recv(4096):
                time.sleep(0.02)

    thread = threading.Thread(target=read)
    thread.start()
    sock = secured(far, server_context(authority.issue("server")), 5)
    began = time.monotonic()
    with pytest.raises(frames.PeerSlow):
        frames.send(sock, Kind.BLOCK_REPLY, 1, [bytes(32 << 20)], timeout_s=0.5)
    assert time.monotonic() - began < 2
    sock.close()
    thread.join()


def test_an_adapter_that_is_damaged_on_disk_is_refused_and_others_are_served(
    holder: Holder, burn_log: BurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed bytes that were changed, then whole ones that have another digest; then a defect of our own."""
    before = {path for path in (holder.data_dir / "blobs").rglob("*") if path.is_file()}
    holder.store.publish("b", peft_files(D, RANK, seed=3), base_model="base", policy=policy())
    for path in {path for path in (holder.data_dir / "blobs").rglob("*") if path.is_file()} - before:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(HeUnavailable, match="damaged") as raised:
        holder.key_holder(burn_log, adapter="b")
    assert raised.value.code == HOLDER_ABSENT
    holder.store.publish("c", peft_files(D, RANK, seed=4), base_model="base", policy=policy())
    published = store_module._published
    with monkeypatch.context() as changed:
        changed.setattr(
            store_module, "_published", lambda item: dataclasses.replace(published(item), digest="0" * 64)
        )
        with pytest.raises(HeUnavailable, match="another digest"):
            holder.key_holder(burn_log, adapter="c")

    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    with monkeypatch.context() as changed:
        changed.setattr(holder.service, "greet", broken)
        with pytest.raises(HeUnavailable, match="failed at this request"):
            holder.key_holder(burn_log)
    holder.key_holder(burn_log).close()


def test_tcp_without_tls_is_not_served(holder: Holder) -> None:
    with tcp_listener("127.0.0.1", 0) as listening, pytest.raises(ConfigurationError, match="TLS"):
        Listener(holder.service, listening)


def test_a_capture_of_an_exchange_holds_nothing_that_the_adapter_holder_must_not_have(
    tmp_path: Path, holder: Holder, burn_log: BurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[PreparingBlock] = []
    secrets: list[bytes] = []

    class Remembered(PreparingBlock):
        def __init__(self, d_in: int, rows: int) -> None:
            super().__init__(d_in, rows)
            blocks.append(self)
            secrets.append(self._key)
            secrets.extend(self._rho[feature, :64].tobytes() for feature in range(d_in))
            key = ternary_key(self)
            secrets.extend(key[:32].astype(kind).tobytes() for kind in ("i1", "<i4", "<i8"))

    monkeypatch.setattr(preparation, "PreparingBlock", Remembered)
    tap = Tap(tmp_path / "tap", holder.socket)
    private = RemoteKeyHolder(unix_connector(tmp_path / "tap"), Wanted(TENANT, "a"), burn_log)
    private.b_matrices()
    private.prepare(OUT)
    text = "the patient's name is"
    x = np.random.default_rng(4).standard_normal((5, D)).astype(np.float32)
    x[0] = 0  # what is sent for it is the mask alone
    product = private.products([(OUT, x)])[0]
    private.close()
    tap.close()

    x_q, scales = quantised_tokens(x, private.info().site(OUT).x_bound)
    secrets += [text.encode(), scales.tobytes(), product[1].tobytes()]
    secrets += [row.tobytes() for row in x[1:]] + [row[:8].tobytes() for row in x_q[1:]]
    up = b"".join(up for up, _ in tap.streams())
    assert len(up) > 1_000_000
    assert [secret for secret in secrets if secret in up] == []

    kinds = [kind for stream, _ in tap.streams() for kind, _ in split(stream, dict(TO_ADAPTER_HOLDER))]
    assert set(kinds) == {Kind.HELLO, Kind.B_REQUEST, Kind.BLOCK_BEGIN, Kind.BLOCK_WHOLE_ROWS, Kind.PRODUCTS}
    for stream, _ in tap.streams():
        for kind, payload in split(stream, dict(TO_ADAPTER_HOLDER)):
            if kind is Kind.HELLO:
                assert set(json.loads(payload)) == {"parameters", "tenant", "adapter", "version"}
            if kind is Kind.PRODUCTS:  # ranges and masked words, nothing else
                assert len(payload) == 4 + 24 + 4 * x.size
    down = b"".join(down for _, down in tap.streams())
    a = holder.store.load("a").adapter.sites[OUT].a
    for kind in ("<i2", "<i4", "<f4", "<f8"):
        assert a[0, :16].astype(kind).tobytes() not in down
