"""An example run by its command, as a reader runs it, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.project_files import ROOT


def example(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What `examples/NAME` said, and its exit status; on one thread, and wide enough for whole lines."""
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
