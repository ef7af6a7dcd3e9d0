"""A ledger over each store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tensafe.privacy.ledger import Ledger
from tensafe.storage.ports import Items
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.vault.vault import Vault
from tests.fakes import MemoryItems
from tests.unit.privacy.support import new_ledger, new_vault


@pytest.fixture(params=["memory", "sqlite"])
def items(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Items]:
    if request.param == "memory":
        yield MemoryItems()
        return
    store = SqliteItems(tmp_path / "items.db")
    yield store
    store.close()


@pytest.fixture
def vault(items: Items) -> Vault:
    return new_vault(items)


@pytest.fixture
def ledger(items: Items, vault: Vault) -> Ledger:
    return new_ledger(items, vault, clock_ms=lambda: 1_700_000_000_000)
