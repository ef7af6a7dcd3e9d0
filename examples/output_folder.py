"""The folder that an example writes into: made anew each time, and never at the cost of somebody's files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

MARKER: Final = ".made-by-tensafe-demo"
_TEXT: Final = "The TenSafe demo made this folder and removes all of it when it runs again.\n"


def fresh_folder(path: Path) -> Path:
    """An empty folder with the marker. What an earlier run left is removed; anything else is refused.

    Raises FileExistsError, with a sentence, for a file, a link, or a folder with other contents.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise FileExistsError(f"{path} is not a folder; choose another one with --output")
    if path.is_dir() and any(path.iterdir()):
        if not (path / MARKER).is_file():
            raise FileExistsError(
                f"{path} holds files that this demo has not made; choose a new folder with --output"
            )
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / MARKER).write_text(_TEXT, encoding="utf-8")
    return path
