"""Say what to do when the torch that pip chose does not fit this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia/version")
HELP: Final = """torch does not fit this machine: {problem}
The torch on PyPI is the CUDA build. On a machine without an NVIDIA driver, run
    make install TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
which puts PyTorch's CPU build in its place. README.md, "Installing", says more."""


def problem(driver: Path = NVIDIA_DRIVER) -> str | None:
    """What is wrong with torch here; None if it computes and belongs to this machine."""
    try:
        import torch  # noqa: PLC0415

        torch.ones(1).sum().item()
    except Exception as error:  # noqa: BLE001
        return f"it does not import ({error})"
    if torch.version.cuda is not None and not driver.exists():
        return "it is the CUDA build, and there is no NVIDIA driver"
    return None


def main() -> int:
    """0 if torch is usable, else 1 with what to do."""
    found = problem()
    if found is not None:
        print(HELP.format(problem=found), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
