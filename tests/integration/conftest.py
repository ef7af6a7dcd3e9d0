"""What several folders need and nobody should make twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.project_files import ROOT


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tools/build_function.py, with its sizes in sizes.json."""
    folder = tmp_path_factory.mktemp("function") / "built"
    done = subprocess.run(
        # Relative, as `make function` has it.
        [sys.executable, ROOT / "tools/build_function.py", folder.name],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "sizes.json").write_text(done.stdout)
    return folder
