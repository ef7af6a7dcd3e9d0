"""A data directory and a supervisor process to watch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tensafe.contracts.training import ModelInfo
from tensafe.local.composition import initialise
from tensafe.local.process import OWNER_VARIABLE

ROOT = Path(__file__).resolve().parents[3]
MODEL = ModelInfo(
    name="acme/tiny", path="unused", arch="LlamaForCausalLM", vocab_size=8, max_context_tokens=8
)
PATIENCE_S = 30.0


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    initialise(folder)
    return folder


class Supervised:
    """A supervisor process over stand-in children."""

    def __init__(self, data_dir: Path, children: list[dict[str, object]], **timings: float) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.integration.local.run_supervisor",
                str(data_dir),
                json.dumps(children),
                json.dumps(timings),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "TENSAFE_MODELS": json.dumps([MODEL.model_dump()]),
                "AWS_SECRET_ACCESS_KEY": "no",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready http://127.0.0.1:1\n", (
            line,
            self.process.stderr and self.process.stderr.read(),
        )

    def announced(self, name: str, *, besides: set[str] = frozenset()) -> tuple[str, dict[str, Any]]:
        """The owner and facts of an incarnation of this child that is not in `besides`; waits for it."""
        folder = self.data_dir / "announced"

        def look() -> tuple[str, dict[str, Any]] | None:
            for path in folder.glob(f"{name}-*"):
                if path.name not in besides:
                    return path.name, json.loads(path.read_text())
            return None

        return until(look)

    def end(self, timeout_s: float = PATIENCE_S) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def processes(self) -> list[psutil.Process]:
        """Every process of this data directory but the supervisor."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except (psutil.Error, OSError):
                continue
            if environment.get("TENSAFE_DATA_DIR") == str(self.data_dir) and OWNER_VARIABLE in environment:
                found.append(process)
        return found


def until(look: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """The first true answer of `look`."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def supervise(data_dir: Path) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(*children: dict[str, object], **timings: float) -> Supervised:
        started.append(Supervised(data_dir, list(children), **timings))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate(timeout=10)
        for process in one.processes():
            process.kill()
