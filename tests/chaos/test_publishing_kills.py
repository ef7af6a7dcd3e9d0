"""A publication is killed with SIGKILL at each of its durable steps, here and at the adapter holder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tensafe.local.publishing import _MEMORY
from tensafe.operations.checkpoints import CheckpointKind
from tensafe.operations.records import StreamState
from tensafe.services import Services
from tensafe_gpu.adapter_holder.composition import directory_store, initialise
from tensafe_gpu.adapter_holder.store import Published
from tests.chaos.forking import KILLED, Kill, Server
from tests.chaos.publishing_script import NAME, RUN, submit_run
from tests.chaos.script import BASE, close, copied, open_folder


@pytest.fixture(scope="module")
def trained(space: Path, empty: Path, server: Server) -> Path:
    """A data directory with weights to publish, and an adapter holder's that has none."""
    folder = space / "publishing" / "trained"
    data_dir = copied(empty, folder / "data")
    services = open_folder(data_dir)
    submit_run(services, BASE)
    assert server.run("saved", data_dir, "trainer-0")["status"] == 0
    close(services)
    initialise(folder / "holder")
    return folder


@contextmanager
def place(trained: Path, name: str) -> Iterator[Path]:
    folder = trained.parent / name
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("*.bell"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def opened(folder: Path) -> Iterator[Services]:
    services = open_folder(folder / "data")
    yield services
    close(services)


def published(folder: Path) -> list[Published]:
    store = directory_store(folder / "holder")
    found = [one for name in store.names() for one in store.versions(name)]
    assert all(store.load(one.name, one.version).adapter.sites for one in found)
    store.close()
    return found


def here(services: Services) -> bool:
    return services.checkpoints.peek(RUN, CheckpointKind.SAMPLER, NAME) is not None


def erased(services: Services) -> bool:
    """Nothing of the run can be opened, and nothing is left of it to open."""
    run = services.streams.find(RUN)
    assert run is not None
    key = services.ports.items.get(run.scope.key_item)
    return run.state is StreamState.ERASED and key is None and services.checkpoints.of_run(RUN) == []


def in_memory() -> list[Path]:
    return list(_MEMORY.glob(f"tensafe-publish-{os.getuid()}-*"))


def publish(server: Server, folder: Path, kill: Kill | None = None) -> tuple[int, int]:
    """How it ended, and after how many calls."""
    answer = server.run("publish", folder / "data", "", kill)
    return answer["status"], int(answer["said"][-1].split()[1]) if answer["said"] else 0


def test_a_publication_killed_at_any_durable_step_is_finished_by_the_next_and_made_once(
    trained: Path, server: Server
) -> None:
    with place(trained, "calm") as folder:
        status, calls = publish(server, folder)
        assert status == 0
    assert calls > 6
    left_in_memory = 0
    for kill in [*((number, False) for number in range(1, calls + 1)), (calls, True)]:
        with place(trained, f"{kill[0]}-{kill[1]}") as folder:
            assert publish(server, folder, kill)[0] == KILLED, kill
            with opened(folder) as services:
                placed = services.placements.peek(RUN, NAME) is not None
                # At every moment the weights are here, or at the adapter holder and placed there.
                assert here(services) or (placed and published(folder)), kill
            left_in_memory += bool(in_memory())
            assert publish(server, folder)[0] == 0, kill
            with opened(folder) as services:
                (one,) = published(folder)
                placement = services.placements.find(RUN, NAME)
                assert (placement.adapter, placement.version) == (one.name, one.version), kill
                assert one.active
                assert not here(services), kill
                assert erased(services), kill
            assert in_memory() == [], kill
    assert left_in_memory > 0  # a kill does leave weights there, and the next try removes them
