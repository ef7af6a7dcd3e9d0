"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


def peak_mb() -> float:
    """Largest resident memory since the program started, in 10^6 bytes.

    Not getrusage: its maximum survives exec, so a child would report what its parent held.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("the kernel does not say VmHWM")
