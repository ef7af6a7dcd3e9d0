"""Whoever waits on a terminal sees that something happens, and a script gets nothing but JSON."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tensafe.cli import app as commands
from tensafe.operations.checkpoints import Checkpoint
from tests.project_files import ROOT
from tests.unit.cli.conftest import RUN, Tensafe

ABSENT = "0000000000000000"


def on_a_terminal(seconds: float) -> tuple[str, str]:
    """What `progress` shows, and what the same process writes for a script, while it takes so long."""
    leader, follower = pty.openpty()
    code = (
        "import time\nfrom tensafe.cli.output import print_object, progress\n"
        f"with progress('reading'): time.sleep({seconds})\nprint_object({{'a': 1}}, as_json=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        text=True,
        timeout=60,
        check=True,
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # the other side is closed and everything is read
        pass
    os.close(leader)
    return shown.decode(), done.stdout


def test_a_bar_moves_for_what_takes_long_and_not_for_what_is_quick() -> None:
    shown, out = on_a_terminal(1.2)
    assert shown.count("reading") > 2
    assert "0:00:01" in shown
    assert out == '{\n  "a": 1\n}\n'
    assert on_a_terminal(0.0) == ("", out)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What commands say that they are doing."""
    told: list[str] = []

    @contextmanager
    def progress(text: str) -> Iterator[None]:
        told.append(text)
        yield

    for module in ("options", "runs", "checkpoints", "service", "output"):
        monkeypatch.setattr(f"tensafe.cli.{module}.progress", progress)
    return told


@pytest.mark.usefixtures("domain")
def test_every_command_that_opens_the_data_shows_progress_and_prints_json_alone(
    tensafe: Tensafe, shown: list[str], checkpoint: Checkpoint, letter_id: str, tmp_path: Path
) -> None:
    made = tensafe("keys", "create", "--tenant", "b", "--scope", "train", "--json").json
    for command in (
        ("init", "--data-dir", tmp_path / "second"),
        ("keys", "list"),
        ("keys", "revoke", made["key_id"]),
        ("runs", "list"),
        ("runs", "show", RUN),
        ("ops", "list", RUN),
        ("ops", "show", RUN, 0),
        ("checkpoints", "list"),
        ("checkpoints", "show", checkpoint.path),
        ("checkpoints", "export", checkpoint.path, tmp_path / "adapter.tar"),
        ("checkpoints", "delete", checkpoint.path, "--yes"),
        ("privacy", "show", "letters"),
        ("dead-letters", "list"),
        ("dead-letters", "show", letter_id),
        ("dead-letters", "redrive", letter_id),
        ("ops", "cancel", RUN, 0),
        ("status",),
        ("runs", "erase", RUN, "--yes"),
    ):
        shown.clear()
        answer = tensafe(*command, "--json")
        assert answer.code == (4 if command == ("status",) else 0), answer.err
        assert isinstance(answer.json, dict | list)
        assert len(shown) == 1, command


def test_a_table_is_formatted_under_a_bar(tensafe: Tensafe, shown: list[str], checkpoint: Checkpoint) -> None:
    assert checkpoint.path in tensafe("checkpoints", "list").out
    assert shown == ["reading", "formatting"]


def test_the_exit_codes_are_those_that_the_documents_name(tensafe: Tensafe) -> None:
    readme = re.search(r"exit codes ([^.]+)\.", (ROOT / "README.md").read_text().replace("\n", " "))
    assert readme
    named = dict(re.findall(r"(\d) (\w+)", readme[1]))
    assert named == {"0": "done", "1": "refused", "2": "usage", "3": "not", "4": "unavailable"}
    assert [commands.FAILED, commands.USAGE, commands.NOT_FOUND, commands.UNAVAILABLE] == [1, 2, 3, 4]
    assert tensafe("keys", "list").code == 1
    assert tensafe("init").code == 0
    assert tensafe("init").code == 1
    assert tensafe("keys", "list", "--limits").code == 2
    assert tensafe("keys", "revoke", ABSENT).code == 3
    assert tensafe("status").code == 4


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(
    ("name", "contents"), [("VERSION", b"\xff"), ("models.json", b"{"), ("items.db", b"x" * 5000)]
)
def test_a_damaged_data_directory_is_refused_with_code_1(
    tensafe: Tensafe, data_dir: Path, name: str, contents: bytes
) -> None:
    (data_dir / name).write_bytes(contents)
    answer = tensafe("runs", "list", "--json")
    assert (answer.code, answer.out) == (1, "")
    assert re.fullmatch(r"tensafe: [^\n]+\n", answer.err)
