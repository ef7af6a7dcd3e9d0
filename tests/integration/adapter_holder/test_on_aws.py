"""The adapter holder as ECS starts it: the template's command and variables, over moto.

Its table, bucket and key are its own. The key holder's side of the protocol asks, over mutual TLS. What it
calls, served and by command, is held to the template, for no emulator here enforces IAM.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from tensafe_gpu import healthcheck
from tensafe_gpu.adapter_holder.commands import main
from tensafe_gpu.adapter_holder.composition import open_ports, read_holder_settings
from tensafe_gpu.adapter_holder.store import AdapterStore
from tensafe_gpu.helora.accepted_records import Range
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import TlsConnector, Wanted
from tensafe_gpu.helora.frames import Kind
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.messages import MaskedRange, pack_products
from tensafe_gpu.helora.ports import GARBAGE, HOLDER_ABSENT, NOT_ALLOWED, HeUnavailable
from tensafe_gpu.helora.renewal import of_files
from tensafe_gpu.helora.tls import client_context
from tests.support.aws_stack import Stack, make_stack
from tests.support.certificates import Authority
from tests.support.helora import QUICK, TENANT, PlainReference, peft_files
from tests.support.holder_stack import make_holder
from tests.support.key_policies import permits
from tests.support.role_rights import held
from tests.support.service import free_port
from tests.support.templates import TASKS, read_template
from tests.support.wire_calls import WireCalls, recording_moto

pytestmark = pytest.mark.slow

D, RANK = 64, 8
OUT = "model.layers.0.self_attn.o"
NOT_CALLED = {("s3:ListBucket", "AdapterBucket"): "without it S3 answers 403 for what is not there"}


@pytest.fixture(scope="module")
def wire() -> Iterator[WireCalls]:
    with recording_moto() as wire:
        yield wire


@pytest.fixture(scope="module")
def stack(wire: WireCalls) -> Stack:
    return make_stack(wire.endpoint)


def container() -> Any:
    task = read_template(TASKS)["Resources"]["AdapterHolderTask"]["Properties"]
    return task["ContainerDefinitions"][0]


@pytest.fixture(scope="module")
def environment(stack: Stack) -> dict[str, str]:
    """The variables of the template, and no other."""
    made = make_holder(stack) | {"AWS_ACCESS_KEY_ID": "holder"}
    named = {one["Name"] for one in container()["Environment"]}
    assert {name for name in named if name.startswith("TENSAFE_")} == {
        name for name in made if name.startswith("TENSAFE_")
    }
    return made


@pytest.fixture(autouse=True)
def variables(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TENSAFE_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it has the credentials of whoever made it


def command(*arguments: str, fails: bool = False) -> Any:
    """The command line in this process: its JSON, or with `fails` its sentence."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            code = int(str(ended.code or 0))
    assert bool(code) is fails, err.getvalue()
    return err.getvalue() if fails else json.loads(out.getvalue())


def publish(folder: Path, name: str, *, seed: int = 0) -> Any:
    peft = folder / f"peft-{name}"
    peft.mkdir()
    for file, content in peft_files(D, RANK, seed=seed).items():
        (peft / file).write_bytes(content)
    return command(
        *("publish", "--name", name, "--peft", str(peft), "--base-model", "base", "--tenants", TENANT),
        *("--tokens-per-site", "5000"),
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@contextmanager
def serving(environment: dict[str, str], port: int, alive: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The template's command, but for the address that is listened on."""
    alive.unlink(missing_ok=True)
    python, *arguments = container()["Command"]
    assert (python, arguments[-1]) == ("python", "tcp:0.0.0.0:7443")
    system = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    given = {**system, **environment, healthcheck.VARIABLE: str(alive)}
    line = [sys.executable, "-P", *arguments[:-1], f"tcp:127.0.0.1:{port}"]
    process = subprocess.Popen(line, env=given, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (_listens(port) and alive.exists()):
            assert process.poll() is None, "the adapter holder ended"
            assert time.monotonic() < deadline, "the adapter holder does not listen"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def connect(authority: Authority, tmp_path: Path) -> Iterator[Callable[..., RemoteKeyHolder]]:
    """`connect(port, name="a", tenant=TENANT)`: a key holder over mutual TLS."""
    burn_log = BurnLog(tmp_path / "burned.db")

    def connect(port: int, *, name: str = "a", tenant: str = TENANT) -> RemoteKeyHolder:
        files = of_files(authority.issue(tenant), client_context)
        return RemoteKeyHolder(
            TlsConnector("127.0.0.1", port, files, 2), Wanted(tenant, name), burn_log, QUICK
        )

    yield connect
    burn_log.close()


def plain(name: str) -> PlainReference:
    return PlainReference(AdapterStore(open_ports(read_holder_settings())).load(name).adapter)


def test_exact_deltas_and_no_index_twice_across_a_kill(
    wire: WireCalls,
    environment: dict[str, str],
    authority: Authority,
    connect: Callable[..., RemoteKeyHolder],
    tmp_path: Path,
) -> None:
    port, alive = free_port(), tmp_path / "alive"
    wire.forget()
    assert publish(tmp_path, "a")["version"] == 1
    assert "command `tls`" in command("serve", "--listen", f"tcp:127.0.0.1:{port}", fails=True)
    files = authority.issue("holder")
    assert command(
        *("tls", "--tls-cert", str(files.certificate), "--tls-key", str(files.key)),
        *("--tls-ca", str(files.authority)),
    ) == {"kept": True}
    x = np.random.default_rng(0).standard_normal((3, D)).astype(np.float32)
    expected = plain("a").products([(OUT, x)])[0]
    with serving(environment, port, alive) as process:
        assert alive.exists()
        private = connect(port)
        private.prepare(OUT)
        for _ in range(4):
            assert np.array_equal(private.products([(OUT, x)])[0], expected)
        block = private._supplies[OUT]._cursors[0].block
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(HeUnavailable) as raised:
            private.products([(OUT, x)])
        assert raised.value.code == HOLDER_ABSENT
    with serving(environment, port, alive):
        private.connect_again()
        assert np.array_equal(private.products([(OUT, x)])[0], expected)
        z = np.zeros((1, D), dtype=np.uint32)
        for used in (0, 11, 12, 255, 258):  # answered, and reserved by the one that was killed
            request = pack_products([MaskedRange(Range(block.block_id, used, 1), z)])
            with pytest.raises(HeUnavailable) as raised:
                private._online.ask(Kind.PRODUCTS, request, Kind.PRODUCTS_REPLY, 4096, 5)
            assert raised.value.code == GARBAGE
        with pytest.raises(HeUnavailable) as raised:
            connect(port, tenant="tenant-2")
        assert raised.value.code == NOT_ALLOWED
        assert command("rotate", "--name", "a")["epoch"] == 2
        private.close()
    assert command("show", "--name", "a")["tokens_by_site_and_tenant"] == {}
    assert [(one["name"], one["epoch"]) for one in command("list")["adapters"]] == [("a", 2)]
    assert command("revoke", "--name", "a")["status"] == "revoked"
    # Served, killed and by command: it called what its role may, and its role may no more.
    found = held(wire.of("holder"), "AdapterHolder", {environment["TENSAFE_KMS_KEY_ID"]: "AdapterKey"})
    assert found.refused == set()
    assert found.untaken == set(NOT_CALLED)
    for one in wire.of("holder").uses:
        assert not permits(
            "AdapterKey", "AdapterHolderRole", one.action, dict(one.context) | {"tenant": "acme"}
        )


def test_another_key_or_another_adapter_s_opens_nothing(
    stack: Stack,
    environment: dict[str, str],
    authority: Authority,
    connect: Callable[..., RemoteKeyHolder],
    tmp_path: Path,
) -> None:
    files = authority.issue("holder")
    command(
        *("tls", "--tls-cert", str(files.certificate), "--tls-key", str(files.key)),
        *("--tls-ca", str(files.authority)),
    )
    publish(tmp_path, "b", seed=1)
    publish(tmp_path, "c", seed=2)
    table, dynamodb = environment["TENSAFE_TABLE"], stack.client("dynamodb")

    def wrapped(name: str) -> Any:
        key = {"pk": {"S": f"private/{name}/1"}, "sk": {"S": "key"}}
        return dynamodb.get_item(TableName=table, Key=key)["Item"]

    swapped = wrapped("b") | {"s": wrapped("c")["s"]}  # wrapped for another encryption context
    dynamodb.put_item(TableName=table, Item=swapped)
    port = free_port()
    with serving(environment, port, tmp_path / "alive"):
        with pytest.raises(HeUnavailable) as raised:
            connect(port, name="b")
        assert raised.value.code == HOLDER_ABSENT
        connect(port, name="c").close()
    # The service's key: with it not even the certificate is read.
    foreign = environment | {"TENSAFE_KMS_KEY_ID": stack.environment["TENSAFE_KMS_KEY_ID"]}
    line = [sys.executable, "-m", "tensafe_gpu.adapter_holder", "--listen", f"tcp:127.0.0.1:{port}"]
    given = {"PATH": os.environ["PATH"], **foreign}
    ended = subprocess.run(line, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    # Nothing of an adapter lies in table or bucket in clear.
    weights = peft_files(D, RANK, seed=1)["adapter_model.safetensors"]
    needle = weights[-4 * D : -4 * D + 32]
    s3, bucket = stack.client("s3"), environment["TENSAFE_BUCKET"]
    for one in s3.list_objects_v2(Bucket=bucket)["Contents"]:
        assert needle not in s3.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
    assert command("revoke", "--name", "c")["status"] == "revoked"
    assert "Item" not in dynamodb.get_item(
        TableName=table, Key={"pk": {"S": "private/c/1"}, "sk": {"S": "key"}}
    )
