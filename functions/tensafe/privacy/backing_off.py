"""The pause before a conditional write of this room is tried again."""

from __future__ import annotations

import random
import time


def back_off(attempt: int) -> None:
    """Wait for the writer that was faster; random, so that two do not meet again."""
    time.sleep(random.uniform(0, 0.001 * min(attempt + 1, 20)))  # noqa: S311 - not for secrecy
