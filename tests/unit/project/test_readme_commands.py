"""The commands that the README shows are commands that there are, with the options that it gives them."""

from __future__ import annotations

import shlex

import typer.main

from tensafe.cli.app import app
from tensafe_gpu.adapter_holder.commands import _parser
from tests.project_files import ROOT


def _lines(beginning: str) -> list[list[str]]:
    """The words after `beginning` of every line in a code block that has it, continuations joined."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(text.split("```")[1::2]).replace("\\\n", " ")
    found = [line.partition(beginning)[2] for line in blocks.splitlines() if beginning in line]
    return [shlex.split(line.rstrip("& "), comments=True) for line in found]


def test_tensafe_commands_and_their_options_exist() -> None:
    lines = [line for line in _lines("tensafe ") if line]
    assert len(lines) >= 6
    for words in lines:
        command = typer.main.get_command(app)
        for word in words:
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, words
            command = command.commands[word]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, words


def test_the_adapter_holder_s_commands_are_parsed() -> None:
    lines = _lines("python -m tensafe_gpu.adapter_holder")
    assert len(lines) == 2
    for words in lines:
        _parser().parse_args(["serve", *words] if words[0].startswith("--") else words)
