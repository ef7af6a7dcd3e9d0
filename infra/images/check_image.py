"""Runs inside an image while it is built, and fails the build: what is imported must have been installed.

An image with an editable install, or with the sources on the path, works until the sources are gone. A
compiler is of use to an intruder alone.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import sysconfig
from pathlib import Path

PACKAGES = ("tensafe", "tensafe_gpu")
COMPILERS = ("cc", "gcc", "g++", "clang", "ld", "make", "rustc")


def problems(site_packages: Path) -> list[str]:
    """What is wrong with the interpreter that runs this, whose packages lie in `site_packages`."""
    wrong = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            wrong.append(f"{package} is not installed")
        elif not Path(spec.origin).resolve().is_relative_to(site_packages):
            wrong.append(f"{package} is imported from {spec.origin}, not from site-packages")
    try:
        direct = importlib.metadata.distribution("tensafe").read_text("direct_url.json") or "{}"
    except importlib.metadata.PackageNotFoundError:
        direct = "{}"
    if json.loads(direct).get("dir_info", {}).get("editable"):
        wrong.append("tensafe is an editable install")
    wrong += [f"{path.name} adds to the path" for path in site_packages.glob("*.pth") if _adds_ours(path)]
    if importlib.util.find_spec("vllm") and ctypes.util.find_library("numa") is None:
        wrong.append("vLLM's CPU kernels need libnuma1, which the base image lacks")
    wrong += [f"{name} is on the PATH" for name in COMPILERS if shutil.which(name)]
    return wrong


def _adds_ours(path: Path) -> bool:
    return any(word in path.read_text() for word in ("tensafe", "functions", "gpu_tasks"))


def main() -> None:
    sys.path.pop(0)  # the folder of this file
    wrong = problems(Path(sysconfig.get_path("purelib")).resolve())
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
