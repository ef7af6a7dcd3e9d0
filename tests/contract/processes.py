"""A child process whose every line is an acknowledgement."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A process of tests/contract/children.py; every line it prints is an acknowledgement."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.children", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def rest(self) -> list[str]:
        """All that is left to read until the process ends; a line that a kill cut short is left out."""
        assert self.process.stdout is not None
        text = self.process.stdout.read()
        return text[: text.rfind("\n") + 1].splitlines()

    def tell(self, line: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> list[str]:
        """SIGKILL, and the acknowledgements that were still in the pipe."""
        self.process.kill()
        lines = self.rest()
        self.process.wait(timeout=10)
        return lines
