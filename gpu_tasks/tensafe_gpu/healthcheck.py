"""`python -m tensafe_gpu.healthcheck`: exit 0 if the task of this container announced itself lately.

A container's health check has no port to ask. A task touches the file that TENSAFE_ALIVE_FILE names (the
images do) each time the store took its announcement: a task that hangs, or cannot reach the store, is found.
The adapter holder, which announces itself to nobody, touches it as long as it accepts connections.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

VARIABLE: Final = "TENSAFE_ALIVE_FILE"
STALE_S: Final = 90.0
"""Three times what an announcement is believed for; they come three times as often as that."""


def mark_alive() -> None:
    """Touch the file, if there is to be one."""
    name = os.environ.get(VARIABLE)
    if name:
        Path(name).touch()


def problem(now_s: float) -> str | None:
    """Why the task does not count as alive at this Unix time; None if it does."""
    name = os.environ.get(VARIABLE)
    if not name:
        return f"{VARIABLE} is not set"
    try:
        age_s = now_s - Path(name).stat().st_mtime
    except OSError:
        return "the task has not announced itself yet"
    return f"the task announced itself {age_s:.0f} s ago" if age_s > STALE_S else None


def main() -> None:
    """Say what is wrong, if anything is, by the exit status."""
    sys.exit(problem(time.time()))


if __name__ == "__main__":
    main()
