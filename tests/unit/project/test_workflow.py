"""The workflow runs `.ci/run` where it can pass: as root, on the Debian that the images are made of."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.project_files import ROOT
from tools.images import SUITE

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
STUBS = {
    "id": "echo $UNDER_ID",
    "apt-get": '[ "$1" != indextargets ] || echo "$UNDER_SOURCE"',
    "make": 'echo "make $*"',
    "docker": "exit 0",  # an engine answers
    **dict.fromkeys(("buildah", "debootstrap", "dockerd"), "exit 0"),
}


def test_the_job_is_privileged_root_on_the_images_suite_with_its_own_python() -> None:
    job = WORKFLOW["jobs"]["test"]
    assert job["container"]["image"] == f"python:3.11-{SUITE}"  # whose user is root
    assert "--privileged" in job["container"]["options"].split()
    assert "--user" not in job["container"]["options"]
    assert not any("setup-python" in step.get("uses", "") for step in job["steps"])  # that one is Ubuntu's
    # The runner mounts its engine's socket into the container; that engine knows nothing of what is in here.
    assert job["env"]["DOCKER_HOST"] not in ("", "unix:///var/run/docker.sock", "unix:///run/docker.sock")
    assert ".ci/run" in [step.get("run") for step in job["steps"]]


@pytest.mark.parametrize(
    ("uid", "source", "passes"),
    [("0", "/lists/bookworm_main", True), ("1001", "/lists/bookworm_main", False), ("0", "", False)],
)
def test_where_no_image_can_be_built_it_says_so_before_it_tests_anything(
    tmp_path: Path, uid: str, source: str, passes: bool
) -> None:
    for name, line in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "UNDER_ID": uid, "UNDER_SOURCE": source}
    done = subprocess.run(
        [ROOT / ".ci/run"], env=environment, check=False, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode == 0) is passes
    assert ("make test" in done.stdout) is passes
    assert ("needs root" in done.stderr) is not passes
