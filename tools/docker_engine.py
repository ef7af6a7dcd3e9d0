"""The Docker engine of this machine: whether one answers, and what is asked of it."""

from __future__ import annotations

import functools
import shutil
import socket
import subprocess
from typing import Final

_ANSWER_S: Final = 20


def docker(*arguments: str, timeout_s: float | None = None) -> str:
    """What the command printed. Raises CalledProcessError, TimeoutExpired."""
    line = ["docker", *arguments]
    done = subprocess.run(line, check=True, text=True, capture_output=True, timeout=timeout_s)
    return done.stdout.strip()


@functools.cache
def why_not() -> str | None:
    """Why nothing runs in Docker's containers here; None if an engine answers. As localstack/engine.sh."""
    if shutil.which("docker") is None:
        return "there is no docker command on this machine"
    try:
        docker("info", timeout_s=_ANSWER_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return "no Docker engine answers on this machine"
    return None


@functools.cache
def gateway() -> str | None:
    """Where the default network of containers has this machine: an address that both reach it by.

    None if it has this machine nowhere, as where the engine runs in a virtual machine of its own.
    """
    form = "{{(index .IPAM.Config 0).Gateway}}"
    try:
        address = docker("network", "inspect", "bridge", "--format", form, timeout_s=_ANSWER_S)
        with socket.socket() as one:
            one.bind((address, 0))
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError):
        return None
    return address or None
