"""The image in which `sam local` runs functions: Lambda's own where a registry is reached, else a stand-in.

The stand-in is made on this machine, from debootstrap's Debian that the tasks' images are made of
(tools/images.py), of Lambda's runtime client (RUNTIME, made by tools/build_function.py) and
infra/images/lambda_stand_in.Dockerfile. It is never called by the name of Lambda's.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from tools.buildah import ROOT, STORE, buildah, locked, why_not
from tools.docker_engine import docker
from tools.images import BASE, BASE_PACKAGES, CONTENT, build_from, content_of, make_base

LAMBDAS: Final = "public.ecr.aws/lambda/python:3.11-x86_64"
STAND_IN: Final = "localhost/tensafe-lambda-stand-in:python3.11"
_EMULATED: Final = "localhost/tensafe-lambda-stand-in:rapid-x86_64"
"""SAM CLI's own image over it, which it does not make anew when the stand-in is another."""
_PULL_S: Final = 300
_DOCKERFILE: Final = ROOT / "infra/images/lambda_stand_in.Dockerfile"
_BOOTSTRAP: Final = ROOT / "infra/images/lambda_bootstrap.sh"


class NoImage(RuntimeError):
    """Neither can be had here; the message says why."""


def lambda_image(runtime: Path) -> str:
    """The name of the image that Docker has now. Raises NoImage, CalledProcessError if a build fails."""
    if _there(LAMBDAS):
        return LAMBDAS
    try:
        docker("pull", "--quiet", LAMBDAS, timeout_s=_PULL_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else "too slow"
        reason = why_not()
        if reason is not None:
            raise NoImage(f"{LAMBDAS} cannot be had ({said}), and {reason}") from error
        make_stand_in(runtime)
        return STAND_IN
    return LAMBDAS


def make_stand_in(runtime: Path) -> None:
    """Build it and hand it to Docker, unless Docker has one of the same files."""
    with locked():
        context = STORE / "contexts/lambda-stand-in"
        shutil.rmtree(context, ignore_errors=True)
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(runtime, context / "runtime", ignore=skip)
        shutil.copy2(_BOOTSTRAP, context)
        content = content_of(context, _DOCKERFILE, BASE)
        if _there(STAND_IN, content):
            return
        make_base(BASE, BASE_PACKAGES)
        build_from(context, _DOCKERFILE, STAND_IN, content, BASE)
        archive = STORE / "lambda-stand-in.tar"
        archive.unlink(missing_ok=True)
        try:
            buildah("push", "--quiet", STAND_IN, f"docker-archive:{archive}:{STAND_IN}", capture=True)
            docker("load", "--quiet", "--input", str(archive))
        finally:
            archive.unlink(missing_ok=True)
        if _there(_EMULATED):
            docker("rmi", "--force", _EMULATED)


def _there(image: str, content: str | None = None) -> bool:
    """Whether Docker has the image, made of `content` if that is given."""
    form = f'{{{{index .Config.Labels "{CONTENT}"}}}}'
    try:
        label = docker("image", "inspect", "--format", form, image)
    except subprocess.CalledProcessError:
        return False
    return content is None or label == content
