"""Where images are built, where they are not and why, and what a build must not repeat."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.project_files import ROOT
from tools import buildah, images


def test_a_machine_that_cannot_build_images_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"buildah", "debootstrap", "apt-get"}
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert buildah.why_not() == "images are built by root alone"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert buildah.why_not() is None
    there.remove("debootstrap")
    assert buildah.why_not() == "images need Debian's packages debootstrap"
    there.symmetric_difference_update({"debootstrap", "apt-get"})
    assert buildah.why_not() == "images are built on Debian: there is no apt-get"


def test_ci_brings_what_images_need_and_forbids_to_skip_them() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert f"apt-get install -qq -y --no-install-recommends {' '.join(buildah.PACKAGES)}" in script
    assert "export TENSAFE_REQUIRE_IMAGES=1" in script


@pytest.mark.parametrize("name", ["requirements.txt", "functions/tensafe/__init__.py", "check_image.py"])
def test_an_image_is_built_again_when_a_file_of_its_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(images, "CONTEXTS", tmp_path)
    dockerfile = ROOT / "infra/images/trainer.Dockerfile"
    context = images.make_context("trainer")
    before = images.content_of(context, dockerfile, "base")
    assert images.content_of(images.make_context("trainer"), dockerfile, "base") == before
    assert images.content_of(context, dockerfile, "another") != before
    (context / name).write_text("changed")
    assert images.content_of(context, dockerfile, "base") != before


def test_one_builds_at_a_time_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of `sam local` build beside those of the images."""
    monkeypatch.setattr(buildah, "STORE", tmp_path)
    with buildah.locked(), (tmp_path / "lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
