"""No alarm without a runbook, no runbook without a drill that follows it, no command that none runs."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.project_files import ROOT
from tests.support.alarms import alarms
from tests.support.aws_words import matching
from tests.support.runbooks import NOWHERE, RUNBOOKS, Book, commands, followed


@dataclass(frozen=True)
class Drilled:
    """What the tests drill: alarms by name, and runbooks that a test follows."""

    alarms: frozenset[str]
    runbooks: frozenset[str]


def drilled(folder: Path = ROOT / "tests/integration") -> Drilled:
    named, opened = set[str](), set[str]()
    for path in folder.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            for one in node.decorator_list:
                named |= _words(one, "drill")
            for inner in ast.walk(node):
                opened |= set(sorted(_words(inner, "followed"))[:1])
    return Drilled(frozenset(named), frozenset(opened))


def _words(node: ast.AST, function: str) -> set[str]:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function):
        return set()
    return {str(one.value) for one in node.args if isinstance(one, ast.Constant)}


def problems(runbook_of: Mapping[str, str], files: set[str], done: Drilled) -> list[str]:
    """What is missing between alarms (with their runbooks), the runbooks that there are, and the drills."""
    wrong = [f"{name}: no runbook {book!r}" for name, book in runbook_of.items() if book not in files]
    wrong += [f"{name}: no drill" for name in runbook_of if name not in done.alarms]
    wrong += [f"{name}: a drill of no alarm" for name in sorted(done.alarms - set(runbook_of))]
    wrong += [f"{name}.md: no drill follows it" for name in sorted(files - done.runbooks)]
    return wrong + [f"{name}.md: no alarm leads to it" for name in sorted(files - set(runbook_of.values()))]


RUNBOOK_OF = {name: one.runbook for name, one in alarms().items()}
FILES = {path.stem for path in RUNBOOKS.glob("*.md")}


def test_every_alarm_has_a_runbook_and_every_runbook_a_drill() -> None:
    assert len(RUNBOOK_OF) >= 15
    assert problems(RUNBOOK_OF, FILES, drilled()) == []


@pytest.mark.parametrize("name", sorted(RUNBOOK_OF))
def test_a_drill_that_goes_is_missed(name: str) -> None:
    done = drilled()
    without = Drilled(done.alarms - {name}, done.runbooks - {RUNBOOK_OF[name]})
    assert problems(RUNBOOK_OF, FILES, without) == [
        f"{name}: no drill",
        f"{RUNBOOK_OF[name]}.md: no drill follows it",
    ]


def test_what_is_new_is_missed() -> None:
    wrong = problems({**RUNBOOK_OF, "disk-full": "disk"}, FILES | {"attic"}, drilled())
    assert wrong == [
        "disk-full: no runbook 'disk'",
        "disk-full: no drill",
        "attic.md: no drill follows it",
        "attic.md: no alarm leads to it",
    ]


class Recorder:
    """An operator that runs nothing."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []

    def run(self, words: list[str]) -> None:
        self.words.append(words)


def test_a_command_that_was_not_run_fails_the_drill() -> None:
    recorder = Recorder()
    with pytest.raises(AssertionError, match="not run"), followed("sweeper", recorder) as book:
        book.run("aws logs tail")
    with followed("sweeper", recorder, SWEEP_FAILURES_URL="http://q") as book:
        for begins in ("aws logs tail", "aws sqs receive-message", "aws sqs purge-queue"):
            book.run(begins)
    assert recorder.words[-1] == ["aws", "sqs", "purge-queue", "--queue-url", "http://q"]
    with pytest.raises(AssertionError, match="0 commands"):
        Book("sweeper", recorder, {}).run("aws sqs delete-queue")


def test_what_only_aws_answers_is_in_a_runbook() -> None:
    lines = [" ".join(words) for name in FILES for words in commands((RUNBOOKS / f"{name}.md").read_text())]
    assert all(any(line.startswith(begins) for line in lines) for begins in NOWHERE)


def test_a_filter_pattern_lets_through_what_cloudwatch_would() -> None:
    lines = ['{"status":"503","route":"GET /v1/models"}', '{"status":"503","route":"GET /readyz"}', "no JSON"]
    assert matching(lines, None) == lines
    assert matching(lines, '{ $.status = "5*" }') == lines[:2]
    assert matching(lines, '{ ($.status = "5*") && ($.route != "GET /readyz") }') == lines[:1]
    for other in ("lease", "{ $.status = 5* }", '{ $.a = "1" || $.b = "2" }'):
        with pytest.raises(ValueError, match="not understood"):
            matching(lines, other)
