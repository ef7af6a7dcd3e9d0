"""Every command of a runbook exists, with the options that it is given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import pytest
import typer
from botocore import xform_name
from typer.core import TyperGroup

from tensafe.cli.app import app
from tests.project_files import ROOT
from tests.support.templates import CORE, read_template

RUNBOOKS = sorted((ROOT / "infra/runbooks").glob("*.md"))
UsageError = typer.BadParameter.__base__
NAMES_OF_AWS = {"ApproximateNumberOfMessagesNotVisible", "Enabled", "EventAgeExceeded"}
"""What runbooks call by AWS's own names; the others of this form are parameters."""
BUILT_INTO_THE_AWS_CLI = {("logs", "tail"): {"--since", "--filter-pattern"}}


def _commands(text: str) -> Iterator[list[str]]:
    """What stands in code blocks, line by line, and in backticks."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", rest)]
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] in (["tensafe"], ["aws"], ["curl"]):
            yield words


def _problem(words: list[str]) -> str | None:
    if words[0] == "tensafe":
        return _problem_of_ours(words[1:])
    return _problem_of_aws(words[1:]) if words[0] == "aws" else None


def _problem_of_ours(words: list[str]) -> str | None:
    command = typer.main.get_command(app)
    # An operation is named by a number.
    words = ["1" if word == "SEQ" else word for word in words]
    while isinstance(command, TyperGroup):
        name, *words = words or [""]
        found = command.commands.get(name)
        if found is None:
            return f"no command {name!r}"
        command = found
    try:
        command.make_context("tensafe", words)
    except UsageError as error:
        return error.format_message()
    return None


def _problem_of_aws(words: list[str]) -> str | None:
    service, operation, *rest = words
    options = {word for word in rest if word.startswith("--")}
    if (service, operation) in BUILT_INTO_THE_AWS_CLI:
        known = BUILT_INTO_THE_AWS_CLI[service, operation]
    else:
        model = botocore.session.get_session().get_service_model(service)
        names = {xform_name(name, "-"): name for name in model.operation_names}
        if operation not in names:
            return f"aws {service} has no {operation}"
        shape = model.operation_model(names[operation]).input_shape
        known = {f"--{xform_name(name, '-')}" for name in (shape.members if shape else {})}
    return f"aws {service} {operation} has no {', '.join(options - known)}" if options - known else None


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_every_command_exists(path: Path) -> None:
    found = [(shlex.join(words), _problem(words)) for words in _commands(path.read_text())]
    assert found
    assert [(line, problem) for line, problem in found if problem] == []


@pytest.mark.parametrize(
    "line",
    [
        "tensafe dead-letters resurrect ID",
        "tensafe ops list",
        "tensafe runs list --colour red",
        "aws sqs read-message --queue-url x",
        "aws sqs purge-queue --queue x",
        "aws logs tail x --colour",
    ],
)
def test_what_does_not_exist_is_seen(line: str) -> None:
    (words,) = _commands(f"```sh\n{line}\n```")
    assert _problem(words)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_what_a_runbook_says_to_set_is_a_parameter_of_the_deployment(path: Path) -> None:
    named = set(re.findall(r"`([A-Z][a-z]+[A-Za-z0-9]*)(?:=[^`]+)?`", path.read_text()))
    assert named - NAMES_OF_AWS <= set(read_template(CORE)["Parameters"])
