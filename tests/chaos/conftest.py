"""The trainer's fixtures and a server of processes, for tests that end its processes at every place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.local.composition import initialise
from tests.chaos.forking import Server, fork_server
from tests.chaos.script import CORRELATED, PRIVATE, close, copied, open_folder, submit_all, submit_one
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
