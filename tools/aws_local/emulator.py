"""ministack, the emulator that deploys template.yaml, as a process of its own environment, on loopback.

It expands the SAM template, makes the resources, runs the functions' handlers as processes, routes HTTP
requests through the API's routes and authorizer, and feeds queues to functions. It keeps everything in
memory, checks no policies, and its KMS is no cryptography: nothing here says anything about those.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
import psutil

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PYTHON: Final = ROOT / ".cache/ministack/bin/python"
"""Made by `make ministack`."""
REGION: Final = "eu-central-1"
ACCOUNT: Final = "000000000000"
LOOPBACK: Final = "127.0.0.1"
AwsClient = Any
"""The SDK makes the classes of its clients while it runs."""
_START_S: Final = 30.0
_MAIN: Final = Path(__file__).with_name("run_ministack.py")


class NotInstalled(RuntimeError):
    """There is no ministack here; the message says how it is made."""


class DidNotStart(RuntimeError):
    """ministack ended or does not answer; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Emulator:
    """A running ministack."""

    port: int
    log: Path
    domain: str = "localhost"
    """What names of APIs end with."""
    address: str = LOOPBACK

    @property
    def endpoint_url(self) -> str:
        return f"http://{self.address}:{self.port}"

    def environment(self) -> dict[str, str]:
        """What makes boto3 talk to it, here or in another process."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str) -> AwsClient:
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.endpoint_url,
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 - the emulator takes any
        )


def free_port(address: str = LOOPBACK) -> int:
    """Raises OSError if this machine does not have the address."""
    with socket.socket() as one:
        one.bind((address, 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def running_ministack(folder: Path, address: str = LOOPBACK) -> Iterator[Emulator]:
    """Start it with its files in `folder`, and end it with every process of its functions.

    It listens on `address` alone; containers reach no loopback. Raises NotInstalled, DidNotStart.
    """
    if not PYTHON.exists():
        raise NotInstalled("ministack is not installed: make ministack")
    try:
        port = free_port(address)
    except OSError as error:
        raise DidNotStart(f"this machine has no address {address} for ministack: {error}") from error
    emulator = Emulator(port, folder / "ministack.log", address=address)
    environment = os.environ | {
        "BIND_HOST": address,  # its default is every address
        "IOT_MTLS_ENABLED": "0",  # its MQTT listener has no other
        "SFTP_ENABLED": "0",
        "GATEWAY_PORT": str(emulator.port),
        "STATE_DIR": str(folder / "state"),
        "TMPDIR": str(folder),
        "MINISTACK_REGION": REGION,
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "DOCKER_HOST": "unix:///nonexistent",
    }
    environment["AWS_ENDPOINT_URL"] = emulator.endpoint_url  # which it gives to the functions
    for name in ("PYTHONPATH", "AWS_PROFILE"):
        environment.pop(name, None)
    with emulator.log.open("wb") as log:
        process = subprocess.Popen([PYTHON, "-P", _MAIN], env=environment, stdout=log, stderr=log)
    try:
        _wait_until_it_answers(emulator, process)
        yield emulator
    finally:
        _end(process)


def _wait_until_it_answers(emulator: Emulator, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection((emulator.address, emulator.port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise DidNotStart(f"ministack did not start:\n{emulator.log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its functions' processes too, which would outlive it."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
