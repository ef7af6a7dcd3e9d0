"""The adapter holder as a process: its commands, SIGKILL in the middle, what its disk gives away."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tensafe.contracts.errors import ConfigurationError, Unavailable, Unsupported
from tensafe.storage.file_blobs import FileBlobs
from tensafe_gpu import healthcheck
from tensafe_gpu.adapter_holder import in_clear
from tensafe_gpu.adapter_holder.commands import main
from tensafe_gpu.adapter_holder.composition import DirectorySettings, alone, directory_store
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Wanted, unix_connector
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.ports import HOLDER_ABSENT, HeUnavailable
from tensafe_gpu.peft_settings import CONFIG_FILE, WEIGHTS_FILE
from tests.support.certificates import Authority, closed_key
from tests.support.helora import QUICK, TENANT, PlainReference, peft_files

D, RANK = 64, 8
OUT = "model.layers.0.self_attn.o"
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str) -> Done:
    """The command line in this process: starting one takes longer than what it does."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@contextmanager
def serving(
    data_dir: Path, path: Path, environment: dict[str, str] = ENVIRONMENT
) -> Iterator[subprocess.Popen[bytes]]:
    path.unlink(missing_ok=True)
    line = [
        sys.executable, "-m", "tensafe_gpu.adapter_holder", "--data-dir", str(data_dir),
        "--listen", f"unix:{path}",
    ]  # fmt: skip
    process = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not path.exists():
            assert process.poll() is None, "the adapter holder ended"
            assert time.monotonic() < deadline, "the adapter holder does not listen"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("holder")
    data, peft = folder / "data", write(folder / "peft", peft_files(D, RANK))
    assert command("init", "--data-dir", str(data)).returncode == 0
    done = command(
        "publish", "--data-dir", str(data), "--name", "a", "--peft", str(peft), "--base-model", "base",
        "--tenants", f"{TENANT},tenant-2", "--tokens-per-site", "5000",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["name"], shown["version"], shown["epoch"], shown["status"]) == ("a", 1, 1, "active")
    assert "can compute that site's weights exactly" in shown["extraction"]
    assert {site["site"] for site in shown["sites"]} == {OUT, "model.layers.0.self_attn.qkv"}
    return data


def test_it_is_alive_once_it_listens(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the health check of its container asks."""
    monkeypatch.setenv(healthcheck.VARIABLE, str(tmp_path / "alive"))
    assert healthcheck.problem(time.time())
    with serving(data_dir, tmp_path / "s", ENVIRONMENT | {healthcheck.VARIABLE: str(tmp_path / "alive")}):
        deadline = time.monotonic() + 60
        while healthcheck.problem(time.time()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert healthcheck.problem(time.time()) is None


def test_failures_are_one_sentence(data_dir: Path, tmp_path: Path) -> None:
    bad = peft_files(D, RANK)
    nan = bytearray(bad[WEIGHTS_FILE])
    nan[-4:] = np.float32(np.nan).tobytes()
    broken = write(tmp_path / "nan", {**bad, WEIGHTS_FILE: bytes(nan)})
    publish = ["publish", "--data-dir", str(data_dir), "--name", "b", "--base-model", "base"]
    for arguments, words in (
        (["init", "--data-dir", str(data_dir)], "never overwritten"),
        (["list", "--data-dir", str(tmp_path)], "no key file"),
        (["show", "--data-dir", str(data_dir), "--name", "none"], "no such adapter"),
        (["up", "--data-dir", str(data_dir), "--listen", "tcp:127.0.0.1:99999"], "a port of 1 to 65535"),
        (["up", "--data-dir", str(data_dir), "--listen", "unix:/tmp/" + 150 * "x"], "at most 107 bytes"),
        ([*publish, "--peft", str(broken), "--tenants", "t", "--tokens-per-site", "1"], "not finite"),
        (
            [*publish, "--peft", str(broken), "--tenants", "", "--tokens-per-site", "0"],
            "tenants, tokens_per_site",
        ),
    ):
        done = command(*arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["no room", "several ranks", "the store is away"])
def test_what_fails_beside_the_copy_in_the_clear_was_served_at_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """No version that was served for a moment, whose taking back could fail too; and no copy is left."""
    data, folder = tmp_path / "data", tmp_path / "new"
    peft = write(tmp_path / "peft", peft_files(D, RANK))
    assert command("init", "--data-dir", str(data)).returncode == 0
    publish = (
        "publish", "--data-dir", str(data), "--name", "d", "--base-model", "base", "--peft", str(peft),
        "--tenants", TENANT, "--tokens-per-site", "1", "--in-clear", str(folder),
    )  # fmt: skip

    def fails(*_: object) -> dict[str, bytes]:
        raise {
            "no room": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "several ranks": Unsupported("it has several ranks"),
            "the store is away": Unavailable("the store is away"),
        }[what]

    with monkeypatch.context() as patch:
        target = (FileBlobs, "put") if what == "the store is away" else (in_clear, "peft_of")
        patch.setattr(*target, fails)
        done = command(*publish)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr or what in done.stderr
    assert json.loads(command("list", "--data-dir", str(data)).stdout) == {"adapters": []}
    assert not folder.exists()
    assert json.loads(command(*publish).stdout)["version"] == 1
    assert {path.name for path in folder.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}


def test_tcp_is_not_served_without_certificates(data_dir: Path) -> None:
    line = [sys.executable, "-m", "tensafe_gpu.adapter_holder", "--data-dir", str(data_dir), "--listen"]
    done = subprocess.run(
        [*line, "tcp:127.0.0.1:7443"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "--tls-cert" in done.stderr


def test_a_key_with_a_pass_phrase_is_refused_and_nobody_is_asked_for_it(
    data_dir: Path, tmp_path: Path
) -> None:
    """On a terminal OpenSSL would ask, and a service wait."""
    files = Authority(tmp_path).issue("server")
    closed_key(files.key)
    ours, theirs = os.openpty()
    line = [
        sys.executable, "-m", "tensafe_gpu.adapter_holder", "--data-dir", str(data_dir),
        "--listen", "tcp:127.0.0.1:7443", "--tls-cert", str(files.certificate), "--tls-key", str(files.key),
        "--tls-ca", str(files.authority),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            ["setsid", "--ctty", "--wait", *line],
            stdin=theirs, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 1
    assert "the TLS key has a pass phrase" in done.stderr
    assert "openssl pkey" in done.stderr


def test_a_kill_in_the_middle_uses_no_index_twice_and_loses_no_token_of_the_meter(
    data_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    burn_log = BurnLog(tmp_path / "burned.db")
    store = directory_store(data_dir)
    plain = PlainReference(store.load("a").adapter)
    store.close()
    x = np.random.default_rng(0).standard_normal((3, D)).astype(np.float32)
    answered = 0
    with serving(data_dir, path) as process:
        private = RemoteKeyHolder(unix_connector(path), Wanted(TENANT, "a"), burn_log, QUICK)
        private.prepare(OUT)
        for _ in range(4):
            assert np.array_equal(private.products([(OUT, x)])[0], plain.products([(OUT, x)])[0])
            answered += len(x)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(HeUnavailable) as raised:
            private.products([(OUT, x)])
        assert raised.value.code == HOLDER_ABSENT
    with serving(data_dir, path):
        private.connect_again()
        assert np.array_equal(private.products([(OUT, x)])[0], plain.products([(OUT, x)])[0])
        answered += len(x)
        settings = DirectorySettings(data_dir=data_dir)
        with pytest.raises(ConfigurationError, match="another adapter holder"), alone(settings):
            pass
        assert command("show", "--data-dir", str(data_dir), "--name", "a").returncode == 0
        block = private._supplies[OUT]._cursors[0]
        assert (block.next, block.burned) == (256 + 3, 512)
        private.close()
    shown = json.loads(command("show", "--data-dir", str(data_dir), "--name", "a").stdout)
    assert shown["tokens_by_site_and_tenant"][OUT][TENANT] >= answered
    burn_log.close()


def test_the_data_directory_holds_no_weights_in_clear(data_dir: Path) -> None:
    store = directory_store(data_dir)
    served = store.load("a").adapter.sites[OUT]
    store.close()
    needles = [served.a[0].tobytes(), served.b[f"{OUT}_proj"][0].tobytes(), served.a[0, :8].tobytes()]
    source = np.frombuffer(peft_files(D, RANK)[WEIGHTS_FILE][-4 * D :], dtype=np.uint8).tobytes()
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    assert len(files) >= 5
    for path in files:
        content = path.read_bytes()
        assert not any(needle in content for needle in [*needles, source[:32]]), path
        assert path.stat().st_mode & 0o077 == 0, path


def test_rotating_and_revoking(data_dir: Path, tmp_path: Path) -> None:
    peft = write(tmp_path / "peft", peft_files(D, RANK, seed=5))
    done = command(
        "publish", "--data-dir", str(data_dir), "--name", "c", "--peft", str(peft), "--base-model", "base",
        "--tenants", TENANT, "--tokens-per-site", "20",
    )  # fmt: skip
    assert "31%" in json.loads(done.stdout)["extraction"]
    rotated = json.loads(command("rotate", "--data-dir", str(data_dir), "--name", "c").stdout)
    assert rotated["epoch"] == 2
    assert rotated["digest"] != json.loads(done.stdout)["digest"]
    revoked = json.loads(
        command("revoke", "--data-dir", str(data_dir), "--name", "c", "--version", "1").stdout
    )
    assert revoked["status"] == "revoked"
    assert command("rotate", "--data-dir", str(data_dir), "--name", "c").returncode == 1
    listed = json.loads(command("list", "--data-dir", str(data_dir)).stdout)["adapters"]
    assert [(one["name"], one["status"]) for one in listed] == [("a", "active"), ("c", "revoked")]
    shown = json.loads(command("show", "--data-dir", str(data_dir), "--name", "a").stdout)
    assert set(shown["tokens_by_site_and_tenant"]) <= {OUT}
