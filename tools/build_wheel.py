"""Build the wheel from a clean copy of the sources: `python tools/build_wheel.py OUT_DIR`.

A wheel built inside the checkout can pick up deleted modules from build/ and lists of files from an old
egg-info. The copy holds what the build reads and nothing else. The clock is fixed, so the same sources
give the same bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "functions", "gpu_tasks")
_SKIP = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", "build")
_ZIP_EPOCH = 315532800
"""1980-01-01, the first date that a zip file can hold."""


def build_wheel(out_dir: Path) -> Path:
    """Build one wheel into `out_dir` with this interpreter's setuptools; the path of the wheel.

    Raises subprocess.CalledProcessError, with the build's output in `stdout`, when the build fails.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tensafe-wheel-") as folder:
        copy, built = Path(folder, "src"), Path(folder, "dist")
        copy.mkdir()
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=_SKIP)
            else:
                shutil.copy2(source, copy / name)
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(_ZIP_EPOCH)}
        command = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(built),
            str(copy),
        ]
        subprocess.run(
            command, check=True, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        (wheel,) = built.glob("*.whl")
        return Path(shutil.copy2(wheel, out_dir / wheel.name))


def main() -> int:
    """Command line: one argument, the folder that gets the wheel."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(build_wheel(Path(sys.argv[1])))
    except subprocess.CalledProcessError as error:
        print(error.stdout, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
