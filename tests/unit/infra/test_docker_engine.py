"""Whether a Docker engine answers, where containers reach this machine, and CI's own engine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project_files import ROOT
from tools import docker_engine, lambda_stand_in


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """All that is on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "id", "mktemp", "rm", "seq", "sleep", "tail"):
        (folder / name).symlink_to(shutil.which(name) or "absent")
    monkeypatch.setenv("PATH", str(folder))
    _forget()
    yield folder
    _forget()


def _forget() -> None:
    docker_engine.why_not.cache_clear()
    docker_engine.gateway.cache_clear()


def command(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!{os.path.realpath(folder / 'bash')}\n{body}\n")
    (folder / name).chmod(0o755)


def test_it_says_why_nothing_runs_in_docker(bin_folder: Path) -> None:
    assert docker_engine.why_not() == "there is no docker command on this machine"
    command(bin_folder, "docker", "exit 1")
    _forget()
    assert docker_engine.why_not() == "no Docker engine answers on this machine"
    command(bin_folder, "docker", "exit 0")
    _forget()
    assert docker_engine.why_not() is None


@pytest.mark.sockets
@pytest.mark.parametrize(("said", "address"), [("127.0.0.1", "127.0.0.1"), ("192.0.2.1", None), ("", None)])
def test_only_an_address_of_this_machine_is_one_that_containers_reach_it_by(
    bin_folder: Path, said: str, address: str | None
) -> None:
    command(bin_folder, "docker", f"echo {said}")
    assert docker_engine.gateway() == address


def test_the_stand_in_is_not_called_by_the_name_of_lambdas_image_and_lambdas_is_preferred(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(lambda_stand_in, "make_stand_in", made.append)
    monkeypatch.setattr(lambda_stand_in, "why_not", lambda: None)
    command(bin_folder, "docker", '[ "$1" = pull ]')
    assert lambda_stand_in.lambda_image(tmp_path) == lambda_stand_in.LAMBDAS
    assert made == []
    command(bin_folder, "docker", "echo no route >&2; exit 1")
    assert lambda_stand_in.lambda_image(tmp_path) == lambda_stand_in.STAND_IN
    assert made == [tmp_path]
    assert "stand-in" in lambda_stand_in.STAND_IN
    assert "aws" not in lambda_stand_in.STAND_IN
    monkeypatch.setattr(lambda_stand_in, "why_not", lambda: "only root builds")
    with pytest.raises(lambda_stand_in.NoImage, match=r"no route.*only root builds"):
        lambda_stand_in.lambda_image(tmp_path)


def with_docker(bin_folder: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "tmp").mkdir()
    return subprocess.run(
        [ROOT / ".ci/with_docker.sh", "bash", "-c", "echo ran; docker info; exit 7"],
        env={"PATH": str(bin_folder), "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts an engine")
def test_ci_starts_an_engine_that_ends_with_the_tests(bin_folder: Path, tmp_path: Path) -> None:
    """A `dockerd` that makes its socket's path a file, and a `docker` that answers while that is there."""
    command(bin_folder, "docker", '[ -n "$DOCKER_HOST" ] && [ -f "${DOCKER_HOST#unix://}" ] && echo answers')
    body = 'file="${2#unix://}"; : >"$file"; trap ": >PLACE; exit" TERM; while :; do sleep 0.1; done'
    command(bin_folder, "dockerd", body.replace("PLACE", str(tmp_path / "ended")))
    done = with_docker(bin_folder, tmp_path)
    assert (done.returncode, done.stdout.split()) == (7, ["ran", "answers"])
    assert (tmp_path / "ended").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts an engine")
def test_ci_goes_on_without_an_engine_and_says_why(bin_folder: Path, tmp_path: Path) -> None:
    command(bin_folder, "docker", "exit 1")
    command(bin_folder, "dockerd", "echo no cgroups; exit 1")
    done = with_docker(bin_folder, tmp_path)
    assert done.returncode == 7
    assert done.stdout.splitlines() == ["the Docker engine does not start:", "no cgroups", "ran"]
    assert list((tmp_path / "tmp").iterdir()) == []
