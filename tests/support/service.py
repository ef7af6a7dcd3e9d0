"""A real TenSafe service for tests: a data directory, `tensafe up` as a child, keys, kills."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tensafe.api.context import EdgeLimits

MODEL_NAME = "Qwen/Qwen3-8B-Base"
"""A name that the tinker cookbook knows; the weights behind it are a tiny random model's."""
READY_TIMEOUT_S = 180.0


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tensafe(*arguments: str, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    command = [sys.executable, "-c", "from tensafe.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=check)


@dataclass
class Service:
    """One data directory and the processes over it."""

    folder: Path
    model_path: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    model_name: str = MODEL_NAME
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    metrics_port: int | None = None
    process: subprocess.Popen[str] | None = None

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def waits_per_tenant(self) -> int:
        return EdgeLimits().waits_per_tenant

    def init(self) -> None:
        tensafe("init", "--data-dir", str(self.data_dir))

    def start(self) -> None:
        """Start and wait for the `ready` line."""
        self.launch()
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line == f"ready {self.url}", (line, (self.folder / "up.err").read_text()[-2000:])

    def launch(self) -> None:
        """Start and wait for nothing."""
        command = [
            *(sys.executable, "-c", "from tensafe.cli import main; main()"),
            *("up", "--data-dir", str(self.data_dir), "--port", str(self.port)),
            *("--model", f"{self.model_name}={self.model_path}", "--threads", "1"),
            *self.options,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        errors = (self.folder / "up.err").open("a")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
        )

    def stop(self) -> None:
        """Ctrl-C; everything must be gone afterwards."""
        if self.process is None:
            return
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        self.process.wait(40)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive, alive
        self.process = None

    def kill_everything(self) -> None:
        """SIGKILL the supervisor and every descendant, in no order."""
        assert self.process is not None
        supervisor = psutil.Process(self.process.pid)
        for process in [*supervisor.children(recursive=True), supervisor]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)
        self.process = None

    def role_pids(self, role: str) -> list[int]:
        """Process ids of one role's children: `api`, `trainer` or `sampler`."""
        module = {"api": "tensafe.api.server"}.get(role, f"tensafe_gpu.{role}")
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return [child.pid for child in children if module in child.cmdline()]

    def kill(self, role: str) -> int:
        """SIGKILL one role's process; its pid."""
        (pid,) = self.role_pids(role)
        os.kill(pid, signal.SIGKILL)
        return pid

    def create_key(self, tenant: str = "acme", scope: str = "train,sample", *extra: str) -> str:
        arguments = ("--data-dir", str(self.data_dir), "--tenant", tenant, "--scope", scope, "--json")
        return str(json.loads(tensafe("keys", "create", *arguments, *extra).stdout)["key"])

    def tensafe(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line on this data directory."""
        return tensafe(*arguments, "--data-dir", str(self.data_dir))

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until /readyz says 200."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise TimeoutError("the service did not become ready")

    def metrics(self) -> str:
        """The page for Prometheus."""
        answer = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=20)
        assert answer.status_code == 200
        return answer.text

    def logs(self) -> str:
        """Everything that any process has logged."""
        return "".join(self._log_files())

    def events(self) -> list[dict[str, Any]]:
        """The lines of the log that are complete. A request's own is written after its answer is sent."""
        lines = (line for text in self._log_files() for line in text.splitlines(keepends=True))
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def _log_files(self) -> list[str]:
        return [path.read_text() for path in sorted((self.data_dir / "logs").glob("*.log*"))]
