"""Log files of the supervisor and its children: private, rotated by size, read back for an error."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Final

from tensafe.observability import JsonFormatter

ROTATE_BYTES: Final = 16 * 1024 * 1024
KEPT: Final = 3
"""Older files that are kept, as NAME.log.1 (the newest) to NAME.log.3."""
_TAIL_BYTES: Final = 64 * 1024
_LINE_CHARS: Final = 300


def open_log(path: Path, *, rotate_bytes: int = ROTATE_BYTES) -> int:
    """A descriptor to append to `path`, mode 0600; a file over `rotate_bytes` is set aside first."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if path.exists() and path.stat().st_size > rotate_bytes:
        for number in range(KEPT - 1, 0, -1):
            older = _numbered(path, number)
            if older.exists():
                older.replace(_numbered(path, number + 1))
        path.replace(_numbered(path, 1))
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def log_to_file(path: Path, role: str, level: str) -> None:
    """Send this process's log records to `path` as JSON, and nowhere else."""
    handler = logging.StreamHandler(os.fdopen(open_log(path), "a", buffering=1, encoding="utf-8"))
    handler.setFormatter(JsonFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def last_events(path: Path, *, since: int = 0, count: int = 6) -> list[str]:
    """The last `count` events that were logged after byte `since`, one line each."""
    try:
        with path.open("rb") as file:
            file.seek(max(since, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [_readable(line) for line in lines if line.strip()][-count:]


def _readable(line: str) -> str:
    """The event of a JSON line with its level and exception; any other line as it stands, cut short."""
    try:
        record = json.loads(line)
        text = f"{record['level']}: {record['event']}"
        if record.get("exception"):
            text += f" ({record['exception']})"
    except (ValueError, KeyError, TypeError):
        text = line.strip()
    return text[:_LINE_CHARS]


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
