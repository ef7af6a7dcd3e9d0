"""Without TenSEAL nothing stands in for it: what needs it ends at once, with the command that installs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensafe.local.composition import initialise

MODEL = '{"name": "m", "path": "/nowhere", "arch": "qwen3", "vocab_size": 9, "max_context_tokens": 9}'
INSTALL = "HE-LoRA needs TenSEAL: pip install 'tensafe[he]'"
BLOCKED = """
import runpy, sys
sys.modules["tenseal"] = None
module = sys.argv.pop(1)
if module == "tensafe":
    from tensafe.cli import main
    main()
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
UP = ("tensafe", "up", "--model", "m=/nowhere")
SAMPLER = ("tensafe_gpu.sampler", "--model", "m")
HOLDER = ("tensafe_gpu.adapter_holder", "serve", "--listen", "unix:/nowhere/s")


def said(data_dir: Path, command: tuple[str, ...], *, private: bool) -> str:
    """What it writes before it ends in vain."""
    environment = {
        **os.environ,
        "TENSAFE_PRIVATE_ADAPTERS": str(private),
        "TENSAFE_DATA_DIR": str(data_dir),
        "TENSAFE_MODELS": f"[{MODEL}]",
    }
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *command],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr.strip()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "d"
    initialise(folder)
    return folder


def test_up_starts_nothing(data_dir: Path) -> None:
    assert INSTALL in said(data_dir, UP, private=True)
    assert list((data_dir / "logs").iterdir()) == []
    assert "TenSEAL" not in said(data_dir, UP, private=False)


@pytest.mark.parametrize("command", [SAMPLER, HOLDER])
def test_a_task_ends_before_it_loads_anything(data_dir: Path, command: tuple[str, ...]) -> None:
    assert said(data_dir, command, private=True).endswith(f"ImportError: {INSTALL}")
