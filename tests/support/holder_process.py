"""`python -m tensafe_gpu.adapter_holder` as a process that tests start, kill and start again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "tensafe_gpu.adapter_holder")


class HolderProcess:
    """A data directory of an adapter holder and the process over it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir, self.socket = data_dir, data_dir / "s"
        self.command("init")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    def command(self, name: str, *arguments: str) -> dict[str, Any]:
        command = [*COMMAND, name, "--data-dir", str(self.data_dir), *arguments]
        done = subprocess.run(command, capture_output=True, check=True)
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        command = [*COMMAND, "serve", "--data-dir", str(self.data_dir), "--listen", self.address]
        self.process = subprocess.Popen(command)
        while not self.socket.exists():
            assert self.process.poll() is None
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
