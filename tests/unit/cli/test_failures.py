"""Exit codes mean something, and a failure is one sentence that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError, Gone, InvalidRequest, NotFound, Unavailable
from tests.support.model_folders import model_folder
from tests.unit.cli.conftest import Answer, Tensafe

NOWHERE = "tinker://s-1:train:9/weights/absent"


def one_sentence(answer: Answer, *parts: str) -> None:
    assert answer.out == ""
    assert answer.err.startswith("tensafe: ")
    assert len(answer.err.splitlines()) == 1
    assert "Traceback" not in answer.err
    for part in parts:
        assert part in answer.err


@pytest.mark.parametrize(
    "command",
    [
        ("keys", "create", "--tenant", "a", "--scope", "train"),
        ("keys", "list"),
        ("runs", "list"),
        ("ops", "list", "x"),
        ("checkpoints", "list"),
        ("dead-letters", "list"),
        ("privacy", "show", "x"),
        ("status",),
        ("up", "--model", "a=b"),
    ],
)
def test_without_a_data_directory_nothing_works_and_nothing_is_made(
    tensafe: Tensafe, tmp_path: Path, command: tuple[str, ...]
) -> None:
    answer = tensafe(*command)
    assert answer.code == 1
    one_sentence(answer, f"run: tensafe init --data-dir {tmp_path / 'data'}")
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(
    ("command", "part"),
    [
        (("runs", "show", "absent"), "tensafe runs list"),
        (("runs", "show", "//"), "tensafe runs list"),
        (("runs", "erase", "absent", "--yes"), "tensafe runs list"),
        (("ops", "list", "absent"), "tensafe runs list"),
        (("ops", "show", "absent", "0"), "tensafe runs list"),
        (("keys", "revoke", "0000000000000000"), "tensafe keys list"),
        (("keys", "revoke", "//"), "tensafe keys list"),
        (("dead-letters", "show", "absent"), "tensafe dead-letters list"),
        (("dead-letters", "redrive", "a/b c"), "tensafe dead-letters list"),
        (("checkpoints", "show", NOWHERE), "tensafe checkpoints list"),
        (("checkpoints", "export", NOWHERE, "file"), "tensafe checkpoints list"),
        (("privacy", "show", "absent"), "no privacy domain 'absent'"),
    ],
)
def test_what_is_not_there_is_exit_code_3(tensafe: Tensafe, command: tuple[str, ...], part: str) -> None:
    answer = tensafe(*command)
    assert answer.code == 3
    one_sentence(answer, part)


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(
    ("command", "part"),
    [
        (("keys", "create", "--tenant", "ACME", "--scope", "train"), "lower-case"),
        (("keys", "create", "--tenant", "a", "--scope", "fly"), "admin, train, sample, audit"),
        (("keys", "create", "--tenant", "a", "--scope", " , "), "at least one scope"),
        (("keys", "create", "--tenant", "a", "--scope", "train", "--expires-in", "soon"), "such as 30d"),
        (("keys", "create", "--tenant", "a", "--scope", "train", "--expires-in", "0d"), "such as 30d"),
        (("checkpoints", "show", "final"), "tinker://<run>/<kind>/<name>"),
        (("up", "--model", "tiny"), "NAME=FOLDER"),
        (("up", "--model", "a b=c"), "Qwen/Qwen3-8B-Base"),
    ],
)
def test_a_wrong_value_is_exit_code_2(tensafe: Tensafe, command: tuple[str, ...], part: str) -> None:
    answer = tensafe(*command)
    assert answer.code == 2
    one_sentence(answer, part)


@pytest.mark.parametrize(
    "command",
    [
        ("keys", "create"),
        ("up",),
        ("up", "--model", "a=b", "--port", "65536"),
        ("up", "--model", "a=b", "--device", "tpu"),
        ("nonsense",),
        ("runs", "show"),
        ("ops", "show", "x", "-1"),
    ],
)
def test_wrong_usage_is_exit_code_2(tensafe: Tensafe, command: tuple[str, ...]) -> None:
    answer = tensafe(*command)
    assert answer.code == 2
    assert "Usage:" in answer.err


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--host", "0.0.0.0"), "give --tls-cert and --tls-key"),  # noqa: S104 - it is refused
        (("--host", "192.0.2.7"), "give --tls-cert and --tls-key"),
        (("--tls-cert", "cert.pem"), "go together"),
        (("--tls-cert", "absent.pem", "--tls-key", "absent.pem"), "no PEM certificate"),
    ],
)
def test_up_refuses_an_address_it_must_not_listen_on(
    tensafe: Tensafe, tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    folder = model_folder(tmp_path / "model")
    answer = tensafe("up", "--port", "0", "--model", f"tiny={folder}", *options)
    assert answer.code == 1
    one_sentence(answer, part)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 1),
        (InvalidRequest("x"), 2),
        (NotFound("x"), 3),
        (Gone("x"), 3),
        (Unavailable("x"), 4),
        (PermissionError(13, "Permission denied", "a file"), 1),
    ],
)
@pytest.mark.usefixtures("data_dir")
def test_the_exit_code_of_an_error(
    tensafe: Tensafe, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("tensafe.auth.keys.ApiKeys.list", fail)
    answer = tensafe("keys", "list")
    assert answer.code == code
    one_sentence(answer)


@pytest.mark.usefixtures("data_dir")
def test_a_mistake_of_ours_is_not_hidden(tensafe: Tensafe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tensafe.auth.keys.ApiKeys.list", fail)
    with pytest.raises(ZeroDivisionError):
        tensafe("keys", "list")


def test_the_key_file_of_another_user_is_refused(tensafe: Tensafe, data_dir: Path) -> None:
    (data_dir / "key.json").chmod(0o644)
    answer = tensafe("keys", "list")
    assert answer.code == 1
    one_sentence(answer, "can be read by others")


def test_init_refuses_a_folder_that_is_not_its_own(tensafe: Tensafe, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    answer = tensafe("init", "--data-dir", tmp_path)
    assert answer.code == 1
    one_sentence(answer, "is not empty", "choose a new or an empty one")


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys; sys.argv = ['tensafe', '--help']; import tensafe.cli\n"
        "try: tensafe.cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'pydantic', 'sqlite3', 'cryptography', 'fastapi', 'dp_accounting', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    began_s = os.times().children_user
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "dead-letters" in done.stdout
    # Processor time of the child: what it would take on an idle machine.
    assert os.times().children_user - began_s < 0.5
