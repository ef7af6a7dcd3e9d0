"""Writes requirements/lock-cuda.txt and lock-cuda.json: lock.txt again, with torch and vLLM for CUDA.

    .venv/bin/python -m tools.lock_cuda

pip resolves it against its configured index, for the platform that this runs on (CPython 3.11, x86-64 Linux);
nothing is installed. What both locks may have is held at lock.txt's version.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import Requirement

from tools.locks import (
    CPU_ALONE,
    EDGES,
    LOCKS,
    OTHER_VERSION,
    REQUIREMENTS,
    canonical,
    pin_lines,
    read_lock,
)

HEADER: Final = """\
# lock.txt again, with torch and vLLM for CUDA 13.0 and what they require: for a machine or an image with an
# NVIDIA GPU (driver 580 or newer). `python -m tools.lock_cuda` writes it, and lock-cuda.json beside it;
# tools/locks.py names what differs from lock.txt. Installed with `pip install --no-deps -r`; `===` keeps pip
# from a torch "+cpu".
"""
COMPILER: Final = {
    "nvidia-cuda-cccl": "13.0.85",
    "nvidia-cuda-crt": "13.0.88",
    "nvidia-cuda-nvcc": "13.0.88",
    "nvidia-nvjitlink": "13.0.88",
    "nvidia-nvvm": "13.0.88",
}
"""Of the toolkit that torch names, 13.0.3. Nothing bounds them from above, and what a newer one makes may be
more than the driver can load."""
TOOLS: Final = ("build", "wheel")
"""In lock.txt because `make` runs them."""


def wanted() -> list[str]:
    """What pyproject.toml asks for with every extra, vLLM's CUDA distribution in place of the CPU's."""
    project = tomllib.loads((REQUIREMENTS.parent / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *TOOLS]
    for extra, more in project["optional-dependencies"].items():
        if extra != "sampler":
            texts += more
    return texts


def constraints() -> list[str]:
    """lock.txt, save for what has to differ."""
    held = {name: pin for name, pin in read_lock("cpu").items() if name not in CPU_ALONE | OTHER_VERSION}
    return pin_lines(held | COMPILER, "cuda")


def resolve() -> list[dict[str, Any]]:
    """The metadata of what pip would install. Raises CalledProcessError if it finds no such set."""
    with tempfile.TemporaryDirectory() as folder:
        asked, held, report = (Path(folder, name) for name in ("asked.txt", "held.txt", "report.json"))
        asked.write_text("\n".join([*wanted(), f"torch==={read_lock('cpu')['torch']}"]))
        held.write_text("\n".join(constraints()))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        pip += ["--dry-run", "--ignore-installed", "--only-binary=:all:"]
        pip += ["--report", str(report), "-c", str(held), "-r", str(asked)]
        subprocess.run(pip, check=True)
        return [item["metadata"] for item in json.loads(report.read_text())["install"]]


def edges(packages: list[dict[str, Any]], shared: Mapping[str, str]) -> dict[str, list[str]]:
    """`name` and `name[extra]` -> what it requires on this platform, of packages that lock.txt has not so."""
    extras = {(canonical(one["name"]), "") for one in packages}
    for one in packages:
        for requirement in map(Requirement, one.get("requires_dist", ())):
            extras |= {(canonical(requirement.name), extra) for extra in requirement.extras}
    found: dict[str, list[str]] = {}
    for one in packages:
        name = canonical(one["name"])
        if shared.get(name) == one["version"]:
            continue
        for extra in sorted(extra for owner, extra in extras if owner == name):
            texts = {_without_marker(text) for text in one.get("requires_dist", ()) if _holds(text, extra)}
            found[f"{name}[{extra}]" if extra else name] = sorted(texts)
    return dict(sorted(found.items()))


def _holds(text: str, extra: str) -> bool:
    """Whether the requirement belongs to this extra (""; to none) on this platform."""
    marker = Requirement(text).marker
    if marker is None:
        return extra == ""
    try:
        return marker.evaluate({"extra": extra}) and (extra == "" or not marker.evaluate({"extra": ""}))
    except UndefinedEnvironmentName:
        return False


def _without_marker(text: str) -> str:
    requirement = Requirement(text)
    requirement.marker = None
    return str(requirement)


def main() -> None:
    packages = resolve()
    pins = {canonical(one["name"]): str(one["version"]) for one in packages}
    lines = "".join(f"{line}\n" for line in pin_lines(pins, "cuda"))
    (REQUIREMENTS / LOCKS["cuda"]).write_text(HEADER + lines)
    # torch has the same number in both locks and other requirements.
    shared = {name: pin for name, pin in read_lock("cpu").items() if name != "torch"}
    (REQUIREMENTS / EDGES).write_text(json.dumps(edges(packages, shared), indent=1) + "\n")
    print(f"{LOCKS['cuda']}: {len(pins)} packages")


if __name__ == "__main__":
    main()
