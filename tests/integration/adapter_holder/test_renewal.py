"""Certificates are replaced while both sides run: neither is started again, and none that is over passes."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from tensafe.contracts.errors import ConfigurationError, Unavailable
from tensafe_gpu.adapter_holder import certificates
from tensafe_gpu.adapter_holder.certificates import LOOK_S, followed, keep
from tensafe_gpu.adapter_holder.composition import DirectorySettings, initialise, open_ports
from tensafe_gpu.helora.ports import CERTIFICATE_REFUSED, HeUnavailable, KeyHolder
from tensafe_gpu.helora.renewal import RETRY_S, Renewed, of_files
from tensafe_gpu.helora.tls import TlsFiles, client_context, secured, server_context
from tensafe_gpu.sampler.private.connecting import connect
from tests.support.certificates import Authority
from tests.support.helora import TENANT, peft_files
from tests.support.holder_process import HolderProcess

D = 64
OUT = "model.layers.0.self_attn.o"


class Place:
    """A folder with the three files of one side, which are replaced one after the other."""

    def __init__(self, folder: Path, files: TlsFiles) -> None:
        folder.mkdir()
        self.files = TlsFiles(*(folder / f"{name}.pem" for name in ("cert", "key", "ca")))
        self.put(files)

    def put(self, files: TlsFiles) -> None:
        for name in ("certificate", "key", "authority"):
            self.put_one(name, files)

    def put_one(self, name: str, files: TlsFiles) -> None:
        """As `mv` does: whoever reads sees the old file or the new one."""
        path: Path = getattr(self.files, name)
        fresh = path.with_suffix(".new")
        shutil.copy(getattr(files, name), fresh)
        fresh.replace(path)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def theirs(tmp_path: Path, authority: Authority) -> Place:
    return Place(tmp_path / "theirs", authority.issue("holder"))


@pytest.fixture
def ours(tmp_path: Path, authority: Authority) -> Place:
    return Place(tmp_path / "ours", authority.issue(TENANT))


@pytest.fixture
def holder(tmp_path: Path, theirs: Place) -> Iterator[HolderProcess]:
    peft = tmp_path / "peft"
    peft.mkdir()
    for name, content in peft_files(D, 8).items():
        (peft / name).write_bytes(content)
    process = HolderProcess(tmp_path / "holder", tls=theirs.files)
    process.publish("a", peft, base_model="base", tenant=TENANT, tokens_per_site=1000)
    yield process
    process.kill()


@pytest.mark.slow
def test_each_side_takes_up_what_was_renewed_for_its_next_connection(
    tmp_path: Path, holder: HolderProcess, authority: Authority, theirs: Place, ours: Place
) -> None:
    assert holder.process is not None
    where = {
        **{"address": holder.address, "tenant": TENANT, "adapter": "a", "version": "1"},
        **{"burn_log": str(tmp_path / "burned.db"), "tls_cert": str(ours.files.certificate)},
        **{"tls_key": str(ours.files.key), "tls_ca": str(ours.files.authority)},
    }
    x = np.random.default_rng(0).standard_normal((2, D)).astype(np.float32)
    private = connect(where)
    private.prepare(OUT)
    expected = private.products([(OUT, x)])[0]

    def again() -> None:
        """The same key holder, over a connection that it makes anew."""
        cut(private)
        private.connect_again()
        assert np.array_equal(private.products([(OUT, x)])[0], expected)

    def refused() -> None:
        cut(private)
        with pytest.raises(HeUnavailable) as raised:
            private.connect_again()
        assert raised.value.code == CERTIFICATE_REFUSED

    again()
    ours.put(authority.issue(TENANT, days=-1))  # over since yesterday
    refused()
    ours.put(authority.issue(TENANT, days=2))
    again()
    theirs.put(authority.issue("holder", days=-1))
    refused()
    theirs.put(authority.issue("holder", days=2))
    again()
    # Another authority: what is of the old one alone is let in no more.
    (tmp_path / "next").mkdir()
    following = Authority(tmp_path / "next", "following")
    theirs.put(following.issue("holder"))
    refused()
    ours.put(following.issue(TENANT))
    again()
    private.close()
    assert holder.process.poll() is None


def cut(private: KeyHolder) -> None:
    """The online connection has gone; the next request makes one."""
    private._online.close()  # type: ignore[attr-defined]


def test_half_of_a_renewal_leaves_the_one_before(theirs: Place, authority: Authority) -> None:
    contexts = of_files(theirs.files, server_context)
    first, renewed = contexts(), authority.issue("holder", days=2)
    assert contexts() is first
    theirs.put_one("certificate", renewed)  # its key is still the old one
    assert contexts() is first
    theirs.files.key.unlink()
    assert contexts() is first
    theirs.put_one("key", renewed)
    second = contexts()
    assert second is not first
    theirs.files.authority.write_text("no certificate")
    assert contexts() is second
    theirs.put_one("authority", renewed)
    assert contexts() not in (first, second)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Whoever opens something in this process gets EMFILE."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)  # the lowest free one: all below are in use
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def following(files: TlsFiles, now: list[float]) -> tuple[Renewed, list[float]]:
    """As `of_files`, of whole files that nobody touches again; and the times at which they were read."""
    read: list[float] = []

    def load() -> ssl.SSLContext:
        read.append(now[0])
        return server_context(files)

    return Renewed(lambda: files.certificate.stat().st_ino, load, clock=lambda: now[0]), read


def test_what_could_not_be_read_is_tried_again_though_nobody_replaced_it(
    theirs: Place, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of descriptors when the renewal came: no word about the certificate. Read so often, said once."""
    now = [0.0]
    contexts, read = following(theirs.files, now)
    first = contexts()
    theirs.put(authority.issue("holder", days=2))
    with caplog.at_level(logging.INFO), no_descriptor_left():
        for _ in range(40):
            assert contexts() is first
            now[0] += RETRY_S / 10
    assert len(read) == 1 + 4
    theirs.files.key.write_text("half of a k")
    now[0] += RETRY_S
    assert contexts() is first
    now[0] += RETRY_S
    assert contexts() is first
    theirs.put(authority.issue("holder", days=3))
    now[0] += RETRY_S
    assert contexts() is not first
    reasons = [record.reason for record in caplog.records if hasattr(record, "reason")]
    assert reasons[0] == "EMFILE"
    assert len(reasons) == len(set(reasons)) == 2


def test_a_store_that_is_away_while_it_is_read_is_asked_again(authority: Authority) -> None:
    now, found = [0.0], iter(["one", Unavailable("away"), OSError(24, "too many"), "two"])

    def load() -> object:
        one = next(found)
        if isinstance(one, Exception):
            raise one
        return one

    marks = iter([1, 1])
    contexts = Renewed(lambda: next(marks, 2), load, look_s=1.0, clock=lambda: now[0])  # type: ignore[arg-type]
    got = []
    for _ in range(3):
        now[0] += RETRY_S
        got.append(contexts())
    assert got == ["one", "one", "two"]


@pytest.mark.slow
def test_the_one_before_serves_until_it_ends_and_then_nobody_is_let_in(
    theirs: Place, ours: Place, authority: Authority
) -> None:
    """A renewal that cannot be used makes no old certificate last longer; once it can be, all is well."""
    theirs.put(authority.issue("holder", days=4 / 86400))
    now = [0.0]
    contexts, _ = following(theirs.files, now)
    theirs.put(authority.issue("holder", days=2))
    renewed = theirs.files.key.read_text()
    theirs.files.key.write_text("half of a k")

    def greeted() -> bool:
        near, far = socket.socketpair()

        def serve() -> None:
            with suppress(OSError), secured(far, contexts(), 5) as sock:
                sock.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            secured(near, client_context(ours.files), 5, server_name="127.0.0.1").close()
        except ssl.SSLCertVerificationError:
            return False
        finally:
            near.close()
            thread.join()
        return True

    assert greeted()
    time.sleep(5)
    now[0] += RETRY_S
    assert not greeted()
    theirs.files.key.write_text(renewed)
    now[0] += RETRY_S
    assert greeted()


def test_files_that_are_replaced_while_they_are_read_are_read_again(
    theirs: Place, authority: Authority
) -> None:
    renewals = [authority.issue("holder", days=days) for days in (2, 3)]
    read: list[bytes] = []

    def load(files: TlsFiles) -> object:
        context = server_context(files)
        read.append(files.certificate.read_bytes())
        if len(read) == 2:  # between this and the look at what is there now
            theirs.put(renewals[1])
        return context

    contexts = of_files(theirs.files, load)  # type: ignore[arg-type]
    theirs.put(renewals[0])
    contexts()
    assert read[-1] == renewals[1].certificate.read_bytes()
    assert len(read) == 3


def test_the_first_files_are_read_again_if_they_are_replaced_meanwhile(
    theirs: Place, authority: Authority
) -> None:
    """A certificate of now and the key of before fit nobody; what does not change is refused as it is."""
    renewed, read = authority.issue("holder", days=2), list[bytes]()

    def load(files: TlsFiles) -> ssl.SSLContext:
        read.append(files.certificate.read_bytes())
        try:
            return server_context(files)
        finally:
            if len(read) == 1:
                theirs.files.key.write_bytes(renewed.key.read_bytes())

    theirs.files.certificate.write_bytes(renewed.certificate.read_bytes())
    contexts = of_files(theirs.files, load)
    assert len(read) == 2
    contexts()
    assert len(read) == 2
    theirs.files.key.write_text("half of a k")
    with pytest.raises(ConfigurationError):
        of_files(theirs.files, server_context)


def test_what_is_sealed_in_the_vault_is_looked_for_every_so_often(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialise(tmp_path / "holder")
    ports = open_ports(DirectorySettings(data_dir=tmp_path / "holder"))
    now = [0.0]
    keep(ports, authority.issue("holder"))
    contexts = followed(ports, clock=lambda: now[0])
    first = contexts()
    keep(ports, authority.issue("holder", days=2))
    assert contexts() is first  # no peer that connects costs a read of the store
    now[0] += LOOK_S
    second = contexts()
    assert second is not first
    keep(ports, authority.issue("holder", days=3))

    def away(*_: object) -> int:
        raise Unavailable("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(certificates.sealed_texts, "version", away)
        now[0] += LOOK_S
        assert contexts() is second
    now[0] += LOOK_S
    assert contexts() is not second
    ports.close()


def test_a_client_s_context_is_made_of_what_is_there_now(ours: Place, authority: Authority) -> None:
    contexts = of_files(ours.files, client_context)
    first = contexts()
    ours.put(authority.issue(TENANT, days=2))
    second = contexts()
    assert second is not first
    assert second.check_hostname
