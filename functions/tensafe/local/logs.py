"""Log files of the supervisor and its children: private, rotated by size, read back for an error.

A child's log is its standard error, a descriptor that nobody can exchange under it. So a log that has
grown is copied aside and cut to nothing; every descriptor appends, and goes on at the beginning. What is
written between the end of the copy and the cut, microseconds, is lost.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from tensafe.observability import JsonFormatter, log_unhandled_exceptions

ROTATE_BYTES: Final = 16 * 1024 * 1024
KEPT: Final = 3
"""Older files that are kept, as NAME.log.1 (the newest) to NAME.log.3: about 64 MiB for each process."""
_TAIL_BYTES: Final = 64 * 1024
_LINE_CHARS: Final = 300


def open_log(path: Path) -> int:
    """A descriptor to append to `path`, mode 0600."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def rotate_logs(folder: Path, *, rotate_bytes: int = ROTATE_BYTES) -> None:
    """Set aside every log of the folder that is over `rotate_bytes`. For one thread; raises OSError.

    Of a log that has grown to more than twice that since the last look, the end is kept.
    """
    for path in folder.glob("*.log"):
        if path.is_file() and path.stat().st_size > rotate_bytes:
            _numbered(path, KEPT).unlink(missing_ok=True)  # makes room first: the disk may be full
            _set_aside(path, 2 * rotate_bytes)


def _set_aside(path: Path, most_bytes: int) -> None:
    aside = path.with_name(f"{path.name}.new")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with path.open("r+b") as source, open(fd, "wb", buffering=0) as copy:
            source.seek(max(0, path.stat().st_size - most_bytes))
            shutil.copyfileobj(source, copy)
            for number in range(KEPT - 1, 0, -1):
                if _numbered(path, number).exists():
                    _numbered(path, number).replace(_numbered(path, number + 1))
            aside.replace(_numbered(path, 1))
            shutil.copyfileobj(source, copy)  # what was written meanwhile
            source.truncate(0)
    finally:
        aside.unlink(missing_ok=True)


def log_to_file(path: Path, role: str, level: str) -> None:
    """Send this process's log records to `path` as JSON, and nowhere else; so too what ends it."""
    handler = logging.StreamHandler(os.fdopen(open_log(path), "a", buffering=1, encoding="utf-8"))
    handler.setFormatter(JsonFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    log_unhandled_exceptions(
        lambda kind: sys.stderr.write(f"tensafe: stopped by an unexpected {kind}; {path} says where\n")
    )


def last_events(path: Path, *, since: int = 0, count: int = 6) -> list[str]:
    """The last `count` events that were logged after byte `since`, one line each."""
    try:
        with path.open("rb") as file:
            size_bytes = path.stat().st_size
            since = since if since <= size_bytes else 0  # it was cut meanwhile
            file.seek(max(since, size_bytes - _TAIL_BYTES))
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
