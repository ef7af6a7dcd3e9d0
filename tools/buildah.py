"""buildah with a store of this project's own: no Docker engine, no daemon, nothing outside .cache/images."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
STORE: Final = ROOT / ".cache/images"
PACKAGES: Final = ("buildah", "debootstrap")


def why_not() -> str | None:
    """Why this machine cannot build images; None if it can."""
    if os.geteuid() != 0:
        return "images are built by root alone"
    missing = [name for name in PACKAGES if shutil.which(name) is None]
    if missing:
        return f"images need Debian's packages {' and '.join(missing)}"
    return None if shutil.which("apt-get") else "images are built on Debian: there is no apt-get"


@functools.cache
def storage_driver() -> str:
    """overlay where the kernel mounts one here; elsewhere vfs, which copies an image for each container."""
    chosen = os.environ.get("STORAGE_DRIVER")
    if chosen:
        return chosen
    STORE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STORE) as folder:
        for name in ("lower", "upper", "work", "merged"):
            Path(folder, name).mkdir()
        options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, f"{folder}/merged"]
        tried = subprocess.run(["unshare", "--mount", *mount], check=False, capture_output=True)
    return "overlay" if tried.returncode == 0 else "vfs"


def line(*arguments: str | Path) -> list[str]:
    """The command line of a buildah over the project's store."""
    root, run = STORE / storage_driver(), STORE / f"run-{storage_driver()}"
    return ["buildah", "--root", str(root), "--runroot", str(run), *map(str, arguments)]


def environment() -> dict[str, str]:
    """What that command line needs around it: processes in a chroot, without a container runtime."""
    return os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": storage_driver()}


def buildah(*arguments: str | Path, capture: bool = False) -> str:
    """Run buildah; what it printed, if captured. Raises CalledProcessError."""
    done = subprocess.run(
        line(*arguments),
        env=environment(),
        check=True,
        text=True,
        stdout=subprocess.PIPE if capture else None,
    )
    return (done.stdout or "").strip()


@contextmanager
def locked() -> Iterator[None]:
    """Nobody else builds meanwhile: two would make one base, and `clean` takes others' containers."""
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, however this process ends
        yield


def line_in(
    container: str,
    *command: str,
    volumes: Mapping[Path, str] | None = None,
    variables: Mapping[str, str] | None = None,
) -> list[str]:
    """The command line that runs `command` in a container, with host folders bound to places in it."""
    options = [f"--volume={here}:{there}" for here, there in (volumes or {}).items()]
    options += [f"--env={name}={value}" for name, value in (variables or {}).items()]
    return line("run", *options, container, "--", *command)


def clean() -> None:
    """Remove the containers of a run that was killed, and images without a name."""
    buildah("rm", "--all", capture=True)
    buildah("rmi", "--prune", capture=True)
