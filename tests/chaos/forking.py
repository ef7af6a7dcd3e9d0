"""The server of processes that are killed, as the tests speak to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KILLED = -9
Kill = tuple[int, bool] | float | str
"""At which call, and whether after it; or after how many seconds; or at which stage of the ledger."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    """Forks processes that already have the model. `more` is added to every job."""

    process: subprocess.Popen[str]
    more: dict[str, Any] = field(default_factory=dict)

    def run(self, role: str, folder: Path, owner: str, kill: Kill | None = None) -> Any:
        """How a process of this role ended, and what it said."""
        job: dict[str, Any] = {"role": role, "folder": str(folder), "owner": owner, **self.more}
        if isinstance(kill, float):
            job["kill_after_s"] = kill
        elif isinstance(kill, str):
            job["kill_stage"] = kill
        elif kill is not None:
            job["kill_at"], job["after"] = kill
        return self._ask(job)

    def start(self, folder: Path, owner: str, **more: Any) -> int:
        """The pid of a trainer that lives until SIGTERM, beside others; `wait` for its end."""
        job = {"role": "until-told", "folder": str(folder), "owner": owner, **more}
        return int(self._ask(job)["pid"])

    def wait(self, pid: int) -> int:
        """How a process of `start` ended: its exit status, or the number of its signal, negative."""
        return int(self._ask({"wait": pid})["status"])

    def _ask(self, job: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def fork_server(model: str, empty: Path) -> Iterator[Server]:
    """A server that has loaded `model`, and what it first needs of an initialised data directory."""
    command = [sys.executable, "-m", "tests.chaos.fork_server", model, str(empty)]
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield Server(process)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(10)
