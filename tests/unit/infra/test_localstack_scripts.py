"""`make localstack` and `make sam-local` without Docker: SKIPPED, and why; with it they go on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.project_files import ROOT

SCRIPTS = ("run.sh", "sam_local.sh")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the scripts, with nothing on their PATH but what they need besides docker."""
    shutil.copytree(ROOT / "localstack", tmp_path / "localstack")
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / "bin" / name).symlink_to(found)
    return tmp_path


def executable(command: Path, body: str) -> None:
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(f"#!{os.path.realpath(shutil.which('bash') or '')}\n{body}\n")
    command.chmod(0o755)


def docker(project: Path, body: str) -> None:
    executable(project / "bin/docker", body)


def run(project: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [project / "localstack" / script],
        env={"PATH": str(project / "bin"), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_docker_it_is_skipped_and_says_why(project: Path, script: str) -> None:
    absent = run(project, script)
    assert (absent.returncode, absent.stdout) == (0, "SKIPPED: there is no docker command on this machine\n")
    docker(project, "exit 1")
    silent = run(project, script)
    assert (silent.returncode, silent.stdout) == (0, "SKIPPED: no Docker engine answers on this machine\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_with_an_engine_it_is_not_skipped_and_a_failure_is_one(project: Path, script: str) -> None:
    docker(project, '[ "$1" = info ]')  # and composing fails, and there is no network
    ended = run(project, script)
    assert ended.returncode != 0
    assert "SKIPPED" not in ended.stdout + ended.stderr


def test_sam_local_runs_the_tests_on_docker_and_ends_as_they_do(project: Path) -> None:
    docker(project, '[ "$1" = info ]')
    executable(project / ".venv/bin/python", 'echo "$TENSAFE_SAM_LOCAL $*"; exit 5')
    ended = run(project, "sam_local.sh")
    assert (ended.returncode, ended.stdout.split()[0]) == (5, "docker")
    assert (ROOT / ended.stdout.split()[-1] / "conftest.py").is_file()


@pytest.mark.parametrize("has_http_apis", [True, False])
def test_on_an_emulator_each_folder_gets_a_line_and_what_it_cannot_deploy_is_said(
    project: Path, has_http_apis: bool
) -> None:
    python = """
if [ "$1" = -c ]; then
    echo "CreateApi is not yet implemented"
    exit ANSWER
fi
echo "ran $* on $TENSAFE_EMULATOR_URL"
[ "${@: -1}" != tests/chaos ]
"""
    executable(project / ".venv/bin/python", python.replace("ANSWER", "0" if has_http_apis else "1"))
    ended = run(project, "run.sh", TENSAFE_EMULATOR_URL="http://127.0.0.1:9")
    said, _, summary = ended.stdout.partition("\n\n")
    ran = re.findall(r"^ran -m pytest -q -m emulator (\S+) on http://127.0.0.1:9$", said, re.MULTILINE)
    assert ended.returncode == 1
    lines = ["passed    tests/contract", "FAILED    tests/chaos"]
    if has_http_apis:
        lines += ["passed    tests/integration/infra", "passed    tests/integration/aws"]
    else:
        lines += [
            "SKIPPED   tests/integration/infra, tests/integration/aws: the emulator has no API Gateway v2 "
            "(CreateApi is not yet implemented)"
        ]
    assert summary.splitlines() == lines
    assert ran == [line.split()[1] for line in lines if not line.startswith("SKIPPED")]
    assert all((ROOT / folder).is_dir() for folder in ran)
