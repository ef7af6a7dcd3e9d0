"""What was deleted is not in the files any more, and expired items go when asked."""

from __future__ import annotations

import os
import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.storage import sqlite_database
from tensafe.storage.ports import Delete, Item, Key, Put
from tensafe.storage.sqlite_items import SqliteItems


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_deleted_and_replaced_keys_leave_the_files(tmp_path: Path, seed: int) -> None:
    """Random sizes and order, so that pages split, merge and overflow between the writes."""
    chance = random.Random(seed)
    items = SqliteItems(tmp_path / "items.db")
    names = [f"{chance.randrange(10**6):06d}" for _ in range(400)]
    keys = {Key(f"p{name[0]}", name): os.urandom(32) for name in names}
    for chunk in _chunks(list(keys), 40):
        items.write([Put(key, _padding(chance), 0, keys[key]) for key in chunk])
    before = on_disk(tmp_path)
    assert all(secret in before for secret in keys.values())

    gone = chance.sample(list(keys), 300)
    replaced, deleted = gone[:100], gone[100:]
    for chunk in _chunks(replaced, 40):
        items.write([Put(key, _padding(chance), 1, b"new") for key in chunk])
    for chunk in _chunks(deleted, 40):
        items.write([Delete(key, None) for key in chunk])
    items.scrub()

    left = on_disk(tmp_path)
    lingering = [key for key in gone if keys[key] in left]
    assert lingering == []
    assert all(keys[key] in left for key in keys if key not in gone)
    items.close()


def test_scrub_empties_the_log(tmp_path: Path) -> None:
    items = SqliteItems(tmp_path / "items.db")
    items.write([Put(Key("p", "a"), {"text": "x" * 10_000}, 0)])
    assert (tmp_path / "items.db-wal").stat().st_size > 0
    items.scrub()
    assert (tmp_path / "items.db-wal").stat().st_size == 0
    assert items.get(Key("p", "a")) is not None
    items.close()


def test_scrub_waits_for_a_reader_and_holds_up_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_database, "LOCK_TIMEOUT_S", 1.0)
    items = SqliteItems(tmp_path / "items.db")
    items.write([Put(Key("p", "a"), {}, 0)])
    reader = sqlite3.connect(tmp_path / "items.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM items").fetchall()
    items.write([Delete(Key("p", "a"), 1)])
    with ThreadPoolExecutor(1) as pool:
        scrub = pool.submit(items.scrub)
        for n in range(10):
            items.write([Put(Key("p", f"{n}"), {}, 0)])
        with pytest.raises(Unavailable, match="scrub again"):
            scrub.result(timeout=10)
        scrub = pool.submit(items.scrub)
        reader.execute("COMMIT")
        scrub.result(timeout=10)
    assert (tmp_path / "items.db-wal").stat().st_size == 0
    reader.close()
    items.close()


def test_purge_removes_expired_items_oldest_first(tmp_path: Path) -> None:
    now = [1000.0]
    items = SqliteItems(tmp_path / "items.db", clock=lambda: now[0])
    items.write([Put(Key("p", f"{n:02d}"), {}, 0, expires_at_s=1100 + n) for n in range(10)])
    items.write([Put(Key("p", "kept"), {}, 0)])
    assert items.purge_expired(100) == 0
    now[0] = 1105.5
    assert len(items.query("p")) == 5
    assert items.purge_expired(4) == 4
    now[0] = 0.0  # back in time, what was purged is seen to be gone
    assert [item.key.sort for item in items.query("p")] == ["04", "05", "06", "07", "08", "09", "kept"]
    now[0] = 5000.0
    assert items.purge_expired(100) == 6
    assert items.query("p") == [Item(Key("p", "kept"), 1, {})]
    items.close()


def _padding(chance: random.Random) -> dict[str, str]:
    return {"pad": "x" * chance.choice((0, 50, 500, 5000))}


def _chunks(keys: list[Key], size: int) -> list[list[Key]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]
