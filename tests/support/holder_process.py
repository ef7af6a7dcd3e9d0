"""`python -m tensafe_gpu.adapter_holder` as a process that tests start, kill and start again."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tensafe_gpu.helora.tls import TlsFiles
from tests.support.service import free_port

COMMAND = (sys.executable, "-m", "tensafe_gpu.adapter_holder")


class HolderProcess:
    """A data directory of an adapter holder and the process over it."""

    def __init__(self, data_dir: Path, *, tls: TlsFiles | None = None, watched: bool = False) -> None:
        """On a unix socket, or with `tls` on a port of the loopback; `watched`: by `up`, not `serve`."""
        self._serve = "up" if watched else "serve"
        self.data_dir, self.socket, self.tls = data_dir, data_dir / "s", tls
        self.log = data_dir / "holder.log"
        self.port = 0 if tls is None else free_port()
        self.command("init")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"unix:{self.socket}" if self.tls is None else f"tcp:127.0.0.1:{self.port}"

    def command(self, name: str, *arguments: str) -> dict[str, Any]:
        command = [*COMMAND, name, "--data-dir", str(self.data_dir), *arguments]
        done = subprocess.run(command, capture_output=True, check=True)
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def publish(
        self, name: str, peft: Path, *, base_model: str, tenant: str, tokens_per_site: int
    ) -> dict[str, Any]:
        return self.command(
            *("publish", "--name", name, "--peft", str(peft), "--base-model", base_model),
            *("--tenants", tenant, "--tokens-per-site", str(tokens_per_site)),
        )

    def reached(self, adapter: str, *, tenant: str) -> dict[str, str]:
        """How a key holder beside it finds the first version."""
        return {
            "address": self.address,
            "tenant": tenant,
            "adapter": adapter,
            "version": "1",
            "burn_log": str(self.data_dir / "burned.db"),
        }

    def start(self, given: list[str] | None = None, *, build: Sequence[str] = COMMAND) -> None:
        """By the command that is given, or the one that serves this directory, of this build."""
        self.socket.unlink(missing_ok=True)
        command = given or [*build, self._serve, "--data-dir", str(self.data_dir), "--listen", self.address]
        if self.tls is not None:
            command += ["--tls-cert", str(self.tls.certificate), "--tls-key", str(self.tls.key)]
            command += ["--tls-ca", str(self.tls.authority)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while not self._listens():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.05)

    def _listens(self) -> bool:
        if self.tls is None:
            return self.socket.exists()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill_watched(self) -> None:
        """SIGKILL for the process that `up` has started."""
        assert self.process is not None
        (served,) = psutil.Process(self.process.pid).children()
        served.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
