"""Runs in the first stage of a CUDA sampler's image: compiles the module through which Triton loads kernels.

    python triton_driver.py FOLDER        # FOLDER gets Triton's cache with that module and nothing else

Triton compiles it with the machine's C compiler when it first launches a kernel, and the image has none. The
cache is addressed by what the module is compiled from, so that another Triton does not find it. No driver is
needed: the module is linked against a library of the driver's name that has the symbols and does nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARY = "libcuda.so.1"


def symbols_of(module: Path) -> list[str]:
    """The functions of the driver that a shared object leaves open."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", module], check=True, capture_output=True, text=True
    )
    names = [line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()]
    return sorted(name for name in names if name.startswith("cu"))


def make_library(folder: Path, symbols: list[str]) -> None:
    """A shared library of the driver's name with these functions."""
    source = folder / "cuda.c"
    source.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in symbols))
    compiler = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", folder / LIBRARY, source]
    subprocess.run(compiler, check=True)


def compile_driver(cache: Path, libraries: Path) -> Path:
    """Let Triton compile its module into `cache`; where it lies."""
    script = "from triton.backends.nvidia.driver import CudaUtils; CudaUtils()"
    variables = {"TRITON_CACHE_DIR": str(cache), "TRITON_LIBCUDA_PATH": str(libraries)}
    variables["LD_LIBRARY_PATH"] = str(libraries)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | variables,
        check=False,
        capture_output=True,
        text=True,
    )
    found = list(cache.glob("*/cuda_utils*.so"))
    if len(found) != 1:
        sys.exit(f"Triton compiled no driver: {done.stderr[-2000:]}")
    return found[0]


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        stub, first = Path(name, "stub"), Path(name, "first")
        stub.mkdir()
        # Once to learn what the module calls, and once linked against a library that has it.
        make_library(stub, [])
        make_library(stub, symbols_of(compile_driver(first, stub)))
        module = compile_driver(target, stub)
    needed = subprocess.run(["objdump", "-p", module], check=True, capture_output=True, text=True).stdout
    if LIBRARY not in needed:
        sys.exit(f"{module.name} does not ask for {LIBRARY}")


if __name__ == "__main__":
    main()
