"""Child processes for what only several processes can show, and the emulator that is a process itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from tests.contract.processes import Child
from tests.support.ministack import Emulator, emulator_of_aws


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    started: list[Child] = []

    def start(*arguments: object) -> Child:
        started.append(Child(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait(timeout=10)
        for pipe in (one.process.stdin, one.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """One process on loopback for all contract tests; each makes tables, buckets and queues of its own."""
    with emulator_of_aws(tmp_path_factory.mktemp("ministack")) as running:
        yield running


@pytest.fixture
def partition() -> str:
    """An item partition that no other test uses, so that one table can serve a whole run."""
    return f"test-{uuid4().hex}"
