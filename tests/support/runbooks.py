"""A runbook followed: each command of its blocks is run as it stands there.

    with followed("sweeper", operator, SWEEP_FAILURES_URL=url) as book:
        assert "maintenance failed" in book.run("aws logs tail")
        ...

At the end of the block every command must have been run, but for those of `NOWHERE`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from tests.project_files import ROOT

RUNBOOKS: Final = ROOT / "infra/runbooks"
NOWHERE: Final = {
    "aws application-autoscaling describe-scaling-activities": "no emulator has Application Auto Scaling",
}
"""Commands that nothing but AWS answers, with the reason."""
LOCAL: Final = "## On one machine"
"""The last section of a runbook that has something to say of a service without AWS."""
_PLACEHOLDER: Final = re.compile(r"\$?([A-Z][A-Z_]+[A-Z])(?![A-Za-z])")


class Operator(Protocol):
    """Runs commands against a deployment; what they print, as data."""

    def run(self, words: list[str]) -> Any:
        """One command. Raises AssertionError if it fails."""


class Book:
    """The commands of a runbook's blocks, each run once or more."""

    def __init__(self, name: str, operator: Operator, values: dict[str, str], *, local: bool = False) -> None:
        self._operator = operator
        self._values = values
        text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
        on_aws, _, on_one_machine = text.partition(f"\n{LOCAL}\n")
        self._commands = commands(on_one_machine if local else on_aws)
        self._run: set[int] = set()

    def given(self, **values: str) -> None:
        """What further names in capitals stand for, once it is known."""
        self._values |= values

    def run(self, begins: str, containing: str = "") -> Any:
        """Run the command that begins so, and has the word `containing`; there must be exactly one."""
        start = begins.split()
        found = [
            number
            for number, words in enumerate(self._commands)
            if words[: len(start)] == start and (not containing or containing in words)
        ]
        assert len(found) == 1, f"the runbook has {len(found)} commands {begins!r} {containing!r}"
        self._run.add(found[0])
        return self._operator.run([self._filled(word) for word in self._commands[found[0]]])

    def left(self) -> list[str]:
        """Commands that nobody has run, though they could be."""
        lines = [shlex.join(words) for number, words in enumerate(self._commands) if number not in self._run]
        return [line for line in lines if not any(line.startswith(begins) for begins in NOWHERE)]

    def _filled(self, word: str) -> str:
        if not word.startswith("$") and not _PLACEHOLDER.fullmatch(word):
            return word
        return _PLACEHOLDER.sub(lambda found: self._values.get(found[1], found[0]), word)


def commands(text: str) -> list[list[str]]:
    """The words of each command in the blocks of a runbook; a line may go on after a backslash."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@contextmanager
def followed(name: str, operator: Operator, *, local: bool = False, **values: str) -> Iterator[Book]:
    """The runbook in hand, for AWS or for one machine; every command has been run when the block ends."""
    book = Book(name, operator, values, local=local)
    yield book
    assert book.left() == [], f"infra/runbooks/{name}.md: not run"
