"""`python -m tensafe_gpu.healthcheck`: exit 0 if the task of this container announced itself lately.

A container's health check has no port to ask. A task touches the file that TENSAFE_ALIVE_FILE names (the
images do) each time the store took its announcement: a task that hangs, or cannot reach the store, is found.
The adapter holder, which announces itself to nobody, touches it as long as it accepts connections. A task
that begins to load its model marks itself alive for as long as that may take: ECS gives a container 300 s to
start at most, and a load that hangs is found when its time is over.
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


def mark_alive(for_s: float = STALE_S) -> None:
    """The task counts as alive for so long from now on, if there is to be a file; the last call decides."""
    name = os.environ.get(VARIABLE)
    if name:
        Path(name).touch()
        touched_s = time.time() + for_s - STALE_S
        os.utime(name, (touched_s, touched_s))


def problem(now_s: float) -> str | None:
    """Why the task does not count as alive at this Unix time; None if it does."""
    name = os.environ.get(VARIABLE)
    if not name:
        return f"{VARIABLE} is not set"
    try:
        age_s = now_s - Path(name).stat().st_mtime
    except OSError:
        return "the task has not announced itself yet"
    return f"the task has not been heard of for {age_s - STALE_S:.0f} s too long" if age_s > STALE_S else None


def main() -> None:
    """Say what is wrong, if anything is, by the exit status."""
    sys.exit(problem(time.time()))


if __name__ == "__main__":
    main()
