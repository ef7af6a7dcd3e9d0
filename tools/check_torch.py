"""Say in one sentence what to do when the torch that pip chose cannot be imported."""

from __future__ import annotations

import sys

HELP = """torch was installed but does not import: {error}
The torch on PyPI is the CUDA build and needs NVIDIA's packages. For a CPU machine, remove .venv and run
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install
README.md, "Installing", says what to do on CUDA."""


def main() -> int:
    """Import torch and its CPU kernels once."""
    try:
        import torch  # noqa: PLC0415

        torch.ones(1).sum().item()
    except Exception as error:  # noqa: BLE001
        print(HELP.format(error=error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
