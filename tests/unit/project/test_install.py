"""`make install` on a machine without a GPU: the torch of PyPI is recognised, and one command mends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.project_files import ROOT
from tools import check_torch

INDEX = "https://torch.example/whl/cpu"


def a_torch(cuda: str | None) -> SimpleNamespace:
    return SimpleNamespace(
        ones=lambda _: SimpleNamespace(sum=lambda: SimpleNamespace(item=lambda: 1.0)),
        version=SimpleNamespace(cuda=cuda),
    )


def test_the_cuda_build_needs_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "version"
    monkeypatch.setitem(sys.modules, "torch", a_torch("13.0"))
    assert check_torch.problem(driver) == "it is the CUDA build, and there is no NVIDIA driver"
    driver.write_text("NVRM version")
    assert check_torch.problem(driver) is None


def test_the_cpu_build_fits_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", a_torch(None))
    assert check_torch.problem(tmp_path / "absent") is None


def test_one_that_does_not_import_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if a library that it links to were missing
    assert check_torch.main() == 1
    told = capsys.readouterr().err
    assert "does not import" in told
    assert "make install TORCH_INDEX_URL=https://" in told


def test_the_torch_here_fits() -> None:
    assert subprocess.run([sys.executable, "tools/check_torch.py"], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("index", [INDEX, None])
def test_the_index_is_asked_for_torch_alone_and_before_the_lock(tmp_path: Path, index: str | None) -> None:
    chosen = [f"TORCH_INDEX_URL={index}"] if index else []
    done = subprocess.run(
        ["make", "-n", "install", f"VENV={tmp_path}/venv", *chosen],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if "pip" in line and " install " in line]
    from_index = [line for line in lines if "--index-url" in line]
    assert [("torch==" in line, INDEX in line, "-r" in line.split()) for line in from_index] == (
        [(True, True, False)] if index else []
    )
    if index:
        assert lines.index(from_index[0]) < next(n for n, line in enumerate(lines) if "lock.txt -r" in line)


def test_another_lock_can_be_named(tmp_path: Path) -> None:
    """On a machine with a GPU; what is installed then is remembered apart."""
    told = {}
    for lock in ("requirements/lock.txt", "requirements/lock-cuda.txt"):
        done = subprocess.run(
            ["make", "-n", "install", f"VENV={tmp_path}/venv", f"LOCK={lock}"],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
            text=True,
        )
        assert f"--no-deps -r {lock} -r requirements/cookbook.txt" in done.stdout
        told[lock] = {word for word in done.stdout.split() if "/.locked-" in word}
    assert told["requirements/lock.txt"] != told["requirements/lock-cuda.txt"]
