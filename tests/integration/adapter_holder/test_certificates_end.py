"""Certificates that end, or are taken away, while their connection stands; and what no handshake lets in."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from tensafe_gpu.adapter_holder import listener
from tensafe_gpu.adapter_holder.listener import Listener, Patience
from tensafe_gpu.adapter_holder.sockets import tcp_listener
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import TlsConnector, Wanted
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.ports import CERTIFICATE_REFUSED, HOLDER_ABSENT, HeUnavailable
from tensafe_gpu.helora.renewal import of_files
from tensafe_gpu.helora.standing import Standing
from tensafe_gpu.helora.tls import TlsFiles, client_context, secured, server_context
from tests.support.certificates import Authority
from tests.support.helora import QUICK, TENANT, Holder, adapter_holder, peft_files, policy, served_with

D, RANK = 64, 8
OUT = "model.layers.0.self_attn.o"
LOOK_S = 0.2
X = np.ones((1, D), dtype=np.float32)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def trusted(tmp_path: Path, authority: Authority) -> Path:
    """The file in which an adapter holder has its tenants' authority."""
    path = tmp_path / "trusted.pem"
    path.write_bytes(authority.path.read_bytes())
    return path


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    with adapter_holder(tmp_path / "holder") as holder:
        files = peft_files(D, RANK, leaves=("o",))
        holder.store.publish("a", files, base_model="base", policy=policy())
        yield holder


Reach = Callable[[TlsFiles], RemoteKeyHolder]


@pytest.fixture
def reach(tmp_path: Path, holder: Holder, authority: Authority, trusted: Path) -> Iterator[Reach]:
    burn_log = BurnLog(tmp_path / "burned.db")
    files = authority.issue("server")
    served = TlsFiles(files.certificate, files.key, trusted)
    listening = tcp_listener("127.0.0.1", 0)
    tls = of_files(served, server_context)
    accepting = Listener(holder.service, listening, tls=tls, patience=Patience(5, 30, 5, LOOK_S))
    thread = threading.Thread(target=accepting.serve_forever)
    thread.start()
    port = listening.getsockname()[1]

    def reached(given: TlsFiles) -> RemoteKeyHolder:
        contexts = of_files(TlsFiles(given.certificate, given.key, authority.path), client_context)
        return RemoteKeyHolder(
            TlsConnector("127.0.0.1", port, contexts), Wanted(TENANT, "a"), burn_log, QUICK
        )

    yield reached
    accepting.close()
    thread.join()
    burn_log.close()


def put(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def ends(private: RemoteKeyHolder, *, asking: bool) -> str:
    """The code with which it is refused, by passes or by the next one after a silence."""
    deadline = time.monotonic() + 10
    while True:
        assert time.monotonic() < deadline
        try:
            if asking or not private._online.usable:
                private.products([(OUT, X)])
        except HeUnavailable as error:
            return error.code
        time.sleep(0.02)


@pytest.mark.parametrize("asking", [True, False], ids=["asking", "silent"])
@pytest.mark.parametrize("how", ["list", "authority", "end"])
def test_a_certificate_that_is_taken_away_ends_its_connection(
    *, tmp_path: Path, reach: Reach, authority: Authority, trusted: Path, how: str, asking: bool
) -> None:
    """And those of others go on, with what they have prepared."""
    gone = authority.issue(TENANT, days=4 / 86400 if how == "end" else 2)
    theirs = authority.issue(TENANT, days=3)
    one, other = reach(gone), reach(theirs)
    for private in (one, other):
        private.prepare(OUT)
        private.products([(OUT, X)])
    standing = other._online
    if how == "list":
        put(trusted, authority.revoked(gone))
    elif how == "authority":
        (tmp_path / "next").mkdir()
        put(trusted, Authority(tmp_path / "next", "following").path.read_bytes())
    assert ends(one, asking=asking) in (CERTIFICATE_REFUSED, HOLDER_ABSENT)
    time.sleep(0.3)  # an answer so long ago is not taken for a sign of life
    assert not one.connected()
    with pytest.raises(HeUnavailable) as raised:
        one.connect_again()
    assert raised.value.code == CERTIFICATE_REFUSED
    if how != "authority":
        for _ in range(3):
            time.sleep(LOOK_S)
            other.products([(OUT, X)])
        assert other._online is standing
        reach(theirs).close()
    one.close()
    other.close()


LOOKS_ONCE = Patience(5, 30, 5, 30)
"""Of an adapter holder that looks at nobody's certificate a second time."""


@pytest.mark.parametrize("how", ["list", "authority", "end", "added"])
def test_a_key_holder_ends_a_connection_whose_adapter_holders_certificate_is_taken_away(
    tmp_path: Path, holder: Holder, authority: Authority, trusted: Path, how: str
) -> None:
    """It sends nothing more on it, says why at the next greeting, and asks another one with what it has."""
    gone = authority.issue("server", days=6 / 86400 if how == "end" else 2)
    own, burn_log = authority.issue(TENANT), BurnLog(tmp_path / "burned.db")
    contexts = of_files(TlsFiles(own.certificate, own.key, trusted), client_context)
    (tmp_path / "next").mkdir()
    following = Authority(tmp_path / "next", "following").path.read_bytes()
    with served_with(holder, gone, LOOKS_ONCE) as port:
        connector = TlsConnector("127.0.0.1", port, contexts, look_s=LOOK_S)
        private = RemoteKeyHolder(connector, Wanted(TENANT, "a"), burn_log, QUICK)
        private.prepare(OUT)
        private.products([(OUT, X)])
        match how:
            case "list":
                put(trusted, authority.revoked(gone))
            case "authority":
                put(trusted, following)
            case "added":
                put(trusted, authority.path.read_bytes() + following)
        if how == "added":
            for _ in range(4):
                time.sleep(LOOK_S)
                private.products([(OUT, X)])
        else:
            assert ends(private, asking=True) == HOLDER_ABSENT
            assert not private.connected()
            asked = holder.service.counters["PRODUCTS"]
            for again in (private.connect_again, lambda: private.prepare(OUT)):
                with pytest.raises(HeUnavailable) as raised:
                    again()
                assert raised.value.code == CERTIFICATE_REFUSED
            with pytest.raises(HeUnavailable):
                private.products([(OUT, X)])
            assert holder.service.counters["PRODUCTS"] == asked
    private.close()
    burn_log.close()


def test_a_block_at_hand_is_not_sent_on_to_a_holder_whose_certificate_was_taken_away(
    tmp_path: Path, holder: Holder, authority: Authority, trusted: Path
) -> None:
    own, burn_log = authority.issue(TENANT), BurnLog(tmp_path / "burned.db")
    contexts = of_files(TlsFiles(own.certificate, own.key, trusted), client_context)
    gone = authority.issue("server", days=2)
    with served_with(holder, gone, LOOKS_ONCE) as port:
        connector = TlsConnector("127.0.0.1", port, contexts, look_s=LOOK_S)
        private = RemoteKeyHolder(connector, Wanted(TENANT, "a"), burn_log, QUICK)
        put(trusted, authority.revoked(gone))
        time.sleep(2 * LOOK_S)
        with pytest.raises(HeUnavailable) as raised:
            private.b_matrices()
        assert raised.value.code == CERTIFICATE_REFUSED
        assert holder.service.counters["B_REQUEST"] == 0
        private.close()
    burn_log.close()


def test_a_certificate_without_a_name_is_told_so(tmp_path: Path, reach: Reach, authority: Authority) -> None:
    with pytest.raises(HeUnavailable) as raised:
        reach(authority.issue("server", days=5, names=2))
    assert raised.value.code == CERTIFICATE_REFUSED
    assert "does not name a tenant" in str(raised.value)


def test_an_expired_certificate_is_told_on_both_sides(
    reach: Reach, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """And not as one of another authority, or for another purpose."""
    with pytest.raises(HeUnavailable, match="CERTIFICATE_EXPIRED") as refused:
        reach(authority.issue(TENANT, days=-1))
    assert refused.value.code == CERTIFICATE_REFUSED
    told = [record for record in caplog.records if record.message == "connection dropped: TLS"]
    assert [record.verify for record in told] == ["certificate has expired"]  # type: ignore[attr-defined]


def test_a_certificate_that_only_openssl_can_read_is_refused_as_a_certificate(
    reach: Reach, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not as a fault of the adapter holder, after which a sampler would ask again and again."""

    def unreadable(*_: object, **__: object) -> Standing:
        raise ValueError("a field that is not known")

    monkeypatch.setattr(listener, "Standing", unreadable)
    private = reach(authority.issue(TENANT))
    with pytest.raises(HeUnavailable) as refused:
        private.b_matrices()
    assert refused.value.code == CERTIFICATE_REFUSED
    private.close()


def test_an_authority_that_is_added_ends_nothing(
    tmp_path: Path, reach: Reach, authority: Authority, trusted: Path
) -> None:
    private = reach(authority.issue(TENANT))
    private.prepare(OUT)
    (tmp_path / "next").mkdir()
    following = Authority(tmp_path / "next", "following")
    put(trusted, authority.path.read_bytes() + following.path.read_bytes())
    for _ in range(4):
        time.sleep(LOOK_S)
        private.products([(OUT, X)])
    private.close()


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[socket.socket]:
    """The near end of a connection whose far end answers one handshake."""
    near, far = socket.socketpair()

    def serve() -> None:
        with suppress(OSError), secured(far, context, 5) as sock:
            sock.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield near
    finally:
        near.close()
        thread.join()


def test_a_server_is_known_by_its_alternative_names_alone(authority: Authority) -> None:
    """Its common name is `localhost`, and its alternative name 127.0.0.1."""
    client = client_context(authority.issue(TENANT))
    context = server_context(authority.issue("localhost"))
    with serving(context) as near:
        secured(near, client, 5, server_name="127.0.0.1").close()
    with serving(context) as near, pytest.raises(ssl.SSLCertVerificationError, match="localhost"):
        secured(near, client, 5, server_name="localhost")


def test_a_certificate_that_is_not_whole_is_refused(authority: Authority) -> None:
    loose = server_context(authority.issue("server", strict=False))
    with serving(loose) as near, pytest.raises(ssl.SSLCertVerificationError, match="uthority"):
        secured(near, client_context(authority.issue(TENANT)), 5, server_name="127.0.0.1")


def test_an_older_tls_is_refused(authority: Authority) -> None:
    client = client_context(authority.issue(TENANT))
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving(server_context(authority.issue("server"))) as near, pytest.raises(ssl.SSLError):
        secured(near, client, 5, server_name="127.0.0.1")


def test_no_session_is_resumed_without_its_certificate_being_verified(authority: Authority) -> None:
    client = client_context(authority.issue(TENANT))
    context = server_context(authority.issue("server"))
    with serving(context) as near, secured(near, client, 5, server_name="127.0.0.1") as sock:
        sock.settimeout(0.3)
        with suppress(TimeoutError):
            sock.recv(1)
        assert sock.session is None or not sock.session.has_ticket
