"""The trainer's fixtures and a server of processes, for tests that end its processes at every place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tensafe.local.composition import initialise
from tensafe.local.recovery import reclaim
from tensafe.operations.doorbell import train_queue
from tensafe_gpu.trainer.base_model import BaseModel
from tests.chaos import dealt_script, twenty_runs
from tests.chaos.forking import KILLED, Server, fork_server
from tests.chaos.script import BASE, CORRELATED, PRIVATE, close, copied, open_folder, submit_all, submit_one
from tests.support.training_log import smallest_model
from tests.unit.trainer_worker.conftest import _same_noise, base, new_rig

__all__ = ["_same_noise", "base", "new_rig"]


@pytest.fixture(scope="package")
def space() -> Iterator[Path]:
    """Memory if there is such a file system: a killed process loses nothing that an fsync would save."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="tensafe-chaos-", dir=shared if shared.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="package")
def empty(space: Path) -> Path:
    """An initialised data directory."""
    folder = space / "empty"
    initialise(folder)
    close(open_folder(folder))
    return folder


@pytest.fixture(scope="package")
def server(space: Path, empty: Path) -> Iterator[Server]:
    with fork_server(smallest_model(space / "model"), empty) as server:
        yield server


@pytest.fixture(scope="package")
def submitted(space: Path, empty: Path, server: Server) -> Path:
    """The private run exists, with its noise secret; everything else waits to be done."""
    folder = copied(empty, space / "submitted")
    services = open_folder(folder)
    submit_one(services, PRIVATE, 0)
    submit_one(services, CORRELATED, 0)
    assert server.run("train", folder, "trainer-0")["status"] == 0
    list(submit_all(services))
    close(services)
    return folder


@dataclass(frozen=True)
class DealtRun:
    """Data directories of one dealt run, with one deal seed and one noise secret."""

    begun: Path
    """Its trainer died before the charge of the opening was written."""
    created: Path


@pytest.fixture(scope="package")
def dealt_run(space: Path, empty: Path, server: Server) -> DealtRun:
    while True:
        begun = copied(empty, space / "dealt-begun")
        services = open_folder(begun)
        dealt_script.prepare(services)
        assert server.run("create", begun, "trainer-0", "reserving:1")["status"] == KILLED
        reclaim(services, "trainer-0", train_queue(BASE), counted=True)
        close(services)
        created = copied(begun, space / "dealt-created")
        services = open_folder(created)
        assert server.run("create", created, "trainer-1")["status"] == 0
        enough = dealt_script.deals_enough(services)
        close(services)
        if enough:
            return DealtRun(begun, created)
        shutil.rmtree(begun)
        shutil.rmtree(created)


@pytest.fixture(scope="package")
def undisturbed(base: BaseModel) -> dict[str, Any]:
    """What twenty runs lead to with one trainer that nothing happens to."""
    return twenty_runs.undisturbed(base)
