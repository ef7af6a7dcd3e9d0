"""A world over memory; and one that runs the same test over SQLite as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.operations.world import World


@pytest.fixture
def memory() -> World:
    return World()


@pytest.fixture(params=["memory", "sqlite"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World() if request.param == "memory" else World(tmp_path)
