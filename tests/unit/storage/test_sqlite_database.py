"""SQLite's failures become the service's, and nothing half-done stays behind."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tensafe.contracts.errors import ConfigurationError, IntegrityError, Unavailable
from tensafe.storage import sqlite_database
from tensafe.storage.ports import ConditionFailed, Key, Put, StorageError
from tensafe.storage.sqlite_database import Database, Schema
from tensafe.storage.sqlite_items import SqliteItems

SCHEMA = Schema("test", 1, ("CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b TEXT) STRICT",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(path, SCHEMA)
    yield database
    database.close()


def test_the_settings_that_durability_rests_on(database: Database) -> None:
    with database.reading() as connection:
        found = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "secure_delete")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}


def test_only_the_owner_can_read(path: Path) -> None:
    old_umask = os.umask(0)
    try:
        database = Database(path.parent / "folder" / "store.db", SCHEMA)
        with database.writing() as connection:
            connection.execute("INSERT INTO t VALUES (1, 'x')")
    finally:
        os.umask(old_umask)
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in (path.parent / "folder").iterdir()}
    assert set(modes.values()) == {"0o600"}
    assert {"store.db", "store.db-wal", "store.db-shm"} <= set(modes)
    assert oct((path.parent / "folder").stat().st_mode & 0o777) == "0o700"
    database.close()


def test_a_block_that_raises_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.writing() as connection:
            connection.execute("INSERT INTO t VALUES (1, 'x')")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with database.writing() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone()[0] == 0


def test_a_full_disk_is_unavailable_and_passes(database: Database) -> None:
    with database.writing() as connection:
        connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(Unavailable) as failure, database.writing() as connection:
        connection.execute("INSERT INTO t VALUES (1, ?)", ("x" * 200_000,))
    assert isinstance(failure.value.__cause__, sqlite3.OperationalError)
    with database.writing() as connection:
        connection.execute("INSERT INTO t VALUES (1, 'small')")


def test_a_lock_that_somebody_keeps_is_unavailable(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_database, "LOCK_TIMEOUT_S", 0.1)
    other = Database(path, SCHEMA)
    with database.writing(), pytest.raises(Unavailable, match="locked"), other.writing():
        pass
    with other.writing() as connection:
        connection.execute("INSERT INTO t VALUES (1, 'x')")
    other.close()


def test_a_writer_that_knows_no_lock_file_is_waited_for(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup tool, or the sqlite3 program."""
    monkeypatch.setattr(sqlite_database, "LOCK_TIMEOUT_S", 0.1)
    other = Database(path, SCHEMA)
    foreign = sqlite3.connect(path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="busy"), other.writing():
        pass
    foreign.execute("COMMIT")
    foreign.close()
    with other.writing():
        pass
    other.close()


@pytest.mark.parametrize(
    "content", [b"this is no database, it is text " * 100, b"SQLite format 3\0" + b"x" * 5000]
)
def test_a_damaged_file_is_an_integrity_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="backup"):
        Database(path, SCHEMA)


def test_a_folder_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        Database(tmp_path / "file" / "store.db", SCHEMA)


def test_a_statement_that_the_store_refuses_is_a_storage_error(database: Database) -> None:
    with pytest.raises(StorageError), database.writing() as connection:
        connection.execute("INSERT INTO t VALUES ('text', 1)")


def test_a_store_of_another_version_is_refused(path: Path, database: Database) -> None:
    with pytest.raises(ConfigurationError, match="version 1"):
        Database(path, Schema("test", 2, ()))
    Database(path, Schema("another component", 7, ())).close()


def test_a_closed_store_is_unavailable(database: Database) -> None:
    database.close()
    database.close()
    with pytest.raises(Unavailable), database.reading():
        pass
    with pytest.raises(Unavailable), database.writing():
        pass


def test_close_closes_what_is_in_use_when_it_is_done(database: Database) -> None:
    with database.reading() as connection:
        database.close()
        connection.execute("SELECT 1")
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")


def test_threads_that_come_and_go_leave_no_connections(tmp_path: Path) -> None:
    items = SqliteItems(tmp_path / "items.db")
    before = len(os.listdir("/proc/self/fd"))
    for n in range(30):
        thread = threading.Thread(target=items.get, args=(Key("p", f"{n}"),))
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    items.close()


def test_readers_are_not_held_up_by_a_writer(database: Database) -> None:
    def read() -> int:
        with database.reading() as connection:
            count: int = connection.execute("SELECT count(*) FROM t").fetchone()[0]
            return count

    with ThreadPoolExecutor(1) as pool, database.writing() as connection:
        connection.execute("INSERT INTO t VALUES (1, 'x')")
        assert pool.submit(read).result(timeout=5) == 0


def test_opening_a_store_twice_keeps_the_locks_of_the_first(path: Path, database: Database) -> None:
    """A process that found no lock would believe itself the last and remove the log under the others."""
    with database.writing() as connection:
        connection.execute("INSERT INTO t VALUES (1, 'x')")
    Database(path, SCHEMA).close()
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT 1 FROM t'); c.close()"
    subprocess.run([sys.executable, "-c", program, str(path)], timeout=30, check=True)
    assert path.with_name("store.db-wal").exists()


def test_a_connection_does_not_cross_a_fork(database: Database) -> None:
    with database.reading() as connection:
        mine = connection
    pid = os.fork()
    if pid == 0:
        other = None
        try:
            with database.reading() as connection:
                other = connection
        finally:
            os._exit(1 if other is None or other is mine else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with database.reading() as connection:
        assert connection is mine


def test_both_sides_of_a_fork_read_and_write(tmp_path: Path) -> None:
    items = SqliteItems(tmp_path / "items.db")
    items.write([Put(Key("p", "a"), {}, 0)])
    pid = os.fork()
    if pid == 0:
        seen = None
        try:
            items.write([Put(Key("p", "b"), {}, 0)])
            seen = items.get(Key("p", "a"))
        finally:
            os._exit(0 if seen else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    items.write([Put(Key("p", "c"), {}, 0)])
    assert [item.key.sort for item in items.query("p")] == ["a", "b", "c"]
    with pytest.raises(ConditionFailed):
        items.write([Put(Key("p", "b"), {}, 0)])
    items.close()
