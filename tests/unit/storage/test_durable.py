"""What is written once for good is synced: contents before the name appears, the name afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tensafe.local.composition import initialise
from tensafe.local.model_registry import ModelRegistry
from tensafe.local.models import ModelSource
from tensafe.storage.durable import replace_file
from tests.support.model_folders import model_folder


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was synced and renamed, in order."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(fd: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    def replaced(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name} {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    return done


def in_order(steps: list[str], *wanted: str) -> bool:
    """Whether `wanted` happened in this order, with anything between."""
    left = iter(steps)
    return all(any(step == one for step in left) for one in wanted)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, steps: list[str]) -> None:
    replace_file(tmp_path / "f", "one")
    replace_file(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "two"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    assert steps == ["sync f.new", "rename f.new f", f"sync {tmp_path.name}"] * 2


def test_a_data_directory_is_durable_with_its_name(tmp_path: Path, steps: list[str]) -> None:
    initialise(tmp_path / "a" / "data")
    for name in ("a", tmp_path.name):
        assert f"sync {name}" in steps
    assert in_order(steps, "sync VERSION.new", "rename VERSION.new VERSION", "sync data")
    assert in_order(steps, "sync key.json", "sync data")


def test_the_models_are_durable(tmp_path: Path, steps: list[str]) -> None:
    ModelRegistry(tmp_path).register(ModelSource("tiny", str(model_folder(tmp_path / "m"))).resolve())
    renamed = "rename models.json.new models.json"
    assert in_order(steps, "sync models.json.new", renamed, f"sync {tmp_path.name}")
