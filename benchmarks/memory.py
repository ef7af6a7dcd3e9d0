"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path


def peak_mb() -> float:
    """Largest resident memory since the program started, in 10^6 bytes.

    Not getrusage: its maximum survives exec, so a child would report what its parent held.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("the kernel does not say VmHWM")


def resident_mb() -> float:
    """Resident memory of the process's own now, in 10^6 bytes.

    Without mapped files (its programs), and what the allocator keeps for reuse.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("the kernel does not say RssAnon")


def rise_mb(act: Callable[[], object]) -> float:
    """By how much resident memory rises above where it was while `act` runs, in 10^6 bytes.

    What the allocator keeps for reuse is given back first, or it would hide a rise.
    """
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is resident now
    before = peak_mb()
    act()
    return peak_mb() - before
