"""Builds the images of the GPU tasks with buildah, without a Docker engine.

    make images                                     # all three, and asks them for their health
    make images ACCELERATOR=cuda IMAGE=trainer      # one, of requirements/lock-cuda.txt
    .venv/bin/python -m tools.images trainer        # builds one
    .venv/bin/python -m tools.images --base python:3.11-slim-bookworm --builder python:3.11-bookworm ...

Needs root and Debian's packages buildah and debootstrap. The bases are made by debootstrap unless named.
Everything lies in .cache/images; the versions are those of the accelerator's lock (tools/locks.py). An image
that was built from the same files is left as it is.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec

from packaging.utils import parse_wheel_filename

from tools.buildah import ROOT, STORE, buildah, clean, locked, why_not
from tools.locks import Accelerator, closure, pin_lines

P = ParamSpec("P")

CONTEXTS: Final = STORE / "contexts"
BASE: Final = "localhost/tensafe-base"
BUILDER: Final = "localhost/tensafe-builder"
SUITE: Final = "bookworm"
BASE_PACKAGES: Final = ("python3", "python3-venv", "ca-certificates", "libnuma1")
"""What a base must hold; libnuma is for vLLM's CPU kernels, which say nothing when they cannot load it."""
BUILDER_PACKAGES: Final = (*BASE_PACKAGES, "gcc", "libc6-dev", "libpython3-dev")
"""The first stage of a CUDA sampler compiles Triton's driver (infra/images/triton_driver.py)."""
EXTRAS: Final[dict[str, dict[Accelerator, tuple[str, ...]]]] = {
    "sampler": {
        "cpu": ("gpu", "he", "sampler", "aws", "otel"),
        "cuda": ("gpu", "he", "sampler-cuda", "aws", "otel"),
    },
    "trainer": {"cpu": ("gpu", "aws", "otel"), "cuda": ("gpu", "aws", "otel")},
    "adapter_holder": {"cpu": ("he", "aws")},
}
"""What of tensafe is in an image, by accelerator. The largest first: two are built at a time."""
SOURCES: Final = ("pyproject.toml", "README.md", "functions", "gpu_tasks")
BUILD_TOOLS: Final = ("setuptools>=78,<80", "wheel")
NO_COMPILER: Final = frozenset({"nvidia-cuda-cccl", "nvidia-cuda-crt", "nvidia-cuda-nvcc", "nvidia-nvvm"})
"""CUDA's C++ compiler. It compiles nothing without a host's; vLLM takes kernels that are built already."""
NEEDLESS: Final[dict[tuple[str, Accelerator], frozenset[str]]] = {
    # A third of the image, and vLLM disables it on a CPU.
    ("sampler", "cpu"): frozenset({"triton"}),
    ("sampler", "cuda"): NO_COMPILER,
    # torch would compile kernels with it, for which it needs a compiler (tensafe_gpu/__init__.py).
    ("trainer", "cuda"): frozenset({"triton"}),
}
"""What the lock has, is required, and stays out of an image."""
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


def image_name(image: str, accelerator: Accelerator = "cpu") -> str:
    """What the store calls it."""
    return f"localhost/tensafe-{image.replace('_', '-')}{'' if accelerator == 'cpu' else f'-{accelerator}'}"


def images_for(accelerator: Accelerator) -> list[str]:
    """The images that there are with an accelerator; the adapter holder computes on a CPU alone."""
    return [image for image, extras in EXTRAS.items() if accelerator in extras]


def requirements(image: str, accelerator: Accelerator) -> list[str]:
    """The pins of all that an image holds, as pip reads them. Raises LookupError as `closure`."""
    needless = NEEDLESS.get((image, accelerator), frozenset())
    return pin_lines(closure(EXTRAS[image][accelerator], accelerator, needless), accelerator)


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
def make_base(name: str, packages: Sequence[str]) -> None:
    """Debian with these packages and nothing else, under this name, unless it is there."""
    if name in buildah("images", "--format", "{{.Name}}", capture=True).split():
        return
    tree = STORE / "rootfs"
    shutil.rmtree(tree, ignore_errors=True)
    include = f"--include={','.join(packages)}"
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
    buildah("commit", "-q", "--rm", container, name, capture=True)
    shutil.rmtree(tree)


def make_context(image: str, accelerator: Accelerator = "cpu") -> Path:
    """The folder that the build sees: the sources, the exact versions, and what the build runs."""
    context = CONTEXTS / image_name(image, accelerator).rpartition("/")[2]
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=skip)
        else:
            shutil.copy2(source, context / name)
    for script in ("check_image.py", "triton_driver.py"):
        shutil.copy2(ROOT / "infra/images" / script, context)
    (context / "requirements.txt").write_text("\n".join(requirements(image, accelerator)) + "\n")
    return context


def wheelhouse(accelerator: Accelerator) -> Path:
    """One for each: torch has the same version for both."""
    return STORE / ("wheelhouse" if accelerator == "cpu" else f"wheelhouse-{accelerator}")


@_told
def fill_wheelhouse(wanted: Sequence[str], folder: Path) -> None:
    """Wheels of these exact versions, fetched as pip is configured here; the build needs no index."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = [parse_wheel_filename(path.name) for path in folder.glob("*.whl")]
    there = {f"{name}=={version.public}" for name, version, *_ in wheels}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-qq"]
    pip += ["--wheel-dir", str(folder)]
    missing = [one for one in wanted if one.replace("===", "==") not in there]
    if missing:
        subprocess.run([*pip, "--no-deps", *missing], check=True)
    if not any(one.startswith("wheel==") for one in there):
        subprocess.run([*pip, *BUILD_TOOLS], check=True)


@_told
def build(image: str, accelerator: Accelerator, base: str, builder: str) -> None:
    """Build infra/images/IMAGE.Dockerfile, unless that was done. Raises CalledProcessError if it fails."""
    context, dockerfile = make_context(image, accelerator), ROOT / f"infra/images/{image}.Dockerfile"
    content = content_of(context, dockerfile, f"{base} {builder}" if accelerator == "cuda" else base)
    name = image_name(image, accelerator)
    if _label(name) == content:
        return
    variant = [] if image == "adapter_holder" else [f"--build-arg=ACCELERATOR={accelerator}"]
    if image == "sampler":
        variant.append(f"--build-arg=BUILDER={builder}")
    wheels = (
        "--build-arg=PIP_OPTIONS=--no-index --find-links=/wheelhouse",
        f"--volume={wheelhouse(accelerator)}:/wheelhouse:ro",
    )
    build_from(context, dockerfile, name, content, base, *variant, *wheels)


def build_from(context: Path, dockerfile: Path, name: str, content: str, base: str, *more: str) -> None:
    """The image `name`, labelled with its `content`. Raises CalledProcessError if it fails."""
    buildah(
        "build",
        "--format=docker",  # the other one has no health check
        "--quiet",
        f"--label={CONTENT}={content}",
        f"--build-arg=BASE={base}",
        *more,
        f"--file={dockerfile}",
        f"--tag={name}",
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


def build_all(
    images: Sequence[str],
    accelerator: Accelerator = "cpu",
    base: str | None = None,
    builder: str | None = None,
) -> None:
    """Build these images, two at a time (for CUDA one: they are large), and say how long each part took.

    `builder` is what the first stage runs in; a CUDA sampler's needs a C compiler and Python's headers.
    Raises CalledProcessError if one fails, LookupError as `closure`.
    """
    with locked():
        _build_all(images, accelerator, base, builder)


def _build_all(
    images: Sequence[str], accelerator: Accelerator, base: str | None, builder: str | None
) -> None:
    clean()
    compiles = accelerator == "cuda" and "sampler" in images
    with ThreadPoolExecutor(2 if accelerator == "cpu" else 1) as pool:
        made = [pool.submit(make_base, BASE, BASE_PACKAGES)] if base is None else []
        if compiles and builder is None:
            made.append(pool.submit(make_base, BUILDER, BUILDER_PACKAGES))
        wanted = {one for image in images for one in requirements(image, accelerator)}
        fill_wheelhouse(sorted(wanted), wheelhouse(accelerator))
        for done in made:
            done.result()
        first = builder or (BUILDER if compiles else base or BASE)
        for done in [pool.submit(build, image, accelerator, base or BASE, first) for image in images]:
            done.result()
    clean()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("image", nargs="*", choices=[*EXTRAS, []], help="all of them if none is named")
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu", help="whose lock is built")
    parser.add_argument(
        "--base", help="an image with Python 3.11 and venv; made by debootstrap if none is named"
    )
    parser.add_argument(
        "--builder", help="the same with a C compiler and Python's headers, for a CUDA sampler"
    )
    arguments = parser.parse_args()
    reason = why_not()
    if reason:
        sys.exit(f"{reason}: apt-get install --no-install-recommends buildah debootstrap")
    there = images_for(arguments.accelerator)
    images = arguments.image or there
    if not set(images) <= set(there):
        sys.exit(f"for {arguments.accelerator} there are: {', '.join(there)}")
    try:
        build_all(images, arguments.accelerator, arguments.base, arguments.builder)
    except LookupError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
