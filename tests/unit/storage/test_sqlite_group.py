"""Writers that wait for the same transaction each keep their own fate."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tensafe.contracts.errors import TensafeError
from tensafe.storage import sqlite_database
from tensafe.storage.file_lock import Busy, FairFileLock
from tensafe.storage.ports import ConditionFailed, StorageError
from tensafe.storage.sqlite_database import Database, Schema
from tensafe.storage.sqlite_group import GroupCommit

SCHEMA = Schema("test", 1, ("CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY) STRICT",))


class Counted(Database):
    """Remembers of every transaction whether it was durable."""

    def __init__(self, path: Path) -> None:
        self.durable: list[bool] = []
        super().__init__(path, SCHEMA)

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        self.durable.append(durable)
        with super().writing(durable=durable) as connection:
            yield connection


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Counted]:
    database = Counted(tmp_path / "store.db")
    yield database
    database.close()


def insert(number: int) -> Callable[[sqlite3.Connection], None]:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (?)", (number,))

    return work


def failing(number: int) -> Callable[[sqlite3.Connection], None]:
    """Inserts, and then finds that its condition does not hold."""

    def work(connection: sqlite3.Connection) -> None:
        insert(number)(connection)
        raise ConditionFailed("not so", index=number)

    return work


def broken(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO nowhere VALUES (1)")


def rows(database: Database) -> set[int]:
    with database.reading() as connection:
        return {row[0] for row in connection.execute("SELECT a FROM t")}


def together(
    group: GroupCommit, works: dict[str, Callable[[sqlite3.Connection], None]], *, durable: bool = True
) -> dict[str, Exception | None]:
    """All works wait while a first one (inserting 0) holds the transaction; what each raised."""
    inside, go_on = threading.Event(), threading.Event()
    outcome: dict[str, Exception | None] = {}

    def hold(connection: sqlite3.Connection) -> None:
        inside.set()
        assert go_on.wait(10)
        insert(0)(connection)

    def attempt(name: str, work: Callable[[sqlite3.Connection], None]) -> None:
        try:
            group.run(work, durable=durable)
            outcome[name] = None
        except TensafeError as error:
            outcome[name] = error

    threads = [threading.Thread(target=attempt, args=("hold", hold))]
    threads[0].start()
    assert inside.wait(10)
    for name, work in works.items():
        threads.append(threading.Thread(target=attempt, args=(name, work)))
        threads[-1].start()
    while len(group._waiting) < len(works):
        pass
    go_on.set()
    for thread in threads:
        thread.join(10)
    return outcome


def test_all_that_wait_share_one_transaction(database: Counted) -> None:
    outcome = together(GroupCommit(database), {str(n): insert(n) for n in range(1, 6)})
    assert set(outcome.values()) == {None}
    assert rows(database) == set(range(6))
    assert len(database.durable) == 2


def test_one_whose_condition_fails_is_undone_alone(database: Counted) -> None:
    outcome = together(GroupCommit(database), {"1": insert(1), "2": failing(2), "3": insert(3)})
    lost = outcome.pop("2")
    assert isinstance(lost, ConditionFailed)
    assert lost.index == 2
    assert set(outcome.values()) == {None}
    assert rows(database) == {0, 1, 3}
    assert len(database.durable) == 2


def test_one_that_breaks_the_transaction_breaks_no_other(database: Counted) -> None:
    outcome = together(
        GroupCommit(database), {"1": insert(1), "broken": broken, "2": failing(2), "3": insert(3)}
    )
    assert isinstance(outcome.pop("broken"), StorageError)
    assert isinstance(outcome.pop("2"), ConditionFailed)
    assert set(outcome.values()) == {None}
    assert rows(database) == {0, 1, 3}


def test_those_that_wait_for_another_process_give_up_together(
    database: Counted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sqlite_database, "LOCK_TIMEOUT_S", 0.3)
    group, raised = GroupCommit(database), list[Exception]()

    def attempt(number: int) -> None:
        try:
            group.run(insert(number))
        except Busy as error:
            raised.append(error)

    other = FairFileLock(tmp_path / "store.db")
    other.acquire(1)
    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    other.release()
    other.close()
    assert len(raised) == 4
    assert len(database.durable) == 2  # the first alone, then the others at once


def test_a_shared_transaction_is_durable_if_one_of_its_works_is(database: Counted) -> None:
    group = GroupCommit(database)
    together(group, {"1": insert(1), "2": insert(2)}, durable=False)
    assert database.durable == [False, False]
    inside, go_on = threading.Event(), threading.Event()

    def hold(connection: sqlite3.Connection) -> None:
        inside.set()
        assert go_on.wait(10)

    threads = [threading.Thread(target=group.run, args=(hold,), kwargs={"durable": False})]
    threads[0].start()
    assert inside.wait(10)
    for number, durable in ((3, False), (4, True)):
        threads.append(
            threading.Thread(target=group.run, args=(insert(number),), kwargs={"durable": durable})
        )
        threads[-1].start()
    while len(group._waiting) < 2:
        pass
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert database.durable == [False, False, False, True]


def test_a_relaxed_commit_leaves_the_connection_durable(database: Counted) -> None:
    with database.writing(durable=False) as connection:
        insert(1)(connection)
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 1
    with database.reading() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    with pytest.raises(ZeroDivisionError), database.writing(durable=False):
        raise ZeroDivisionError
    with database.reading() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2


class Nothing:
    """In place of a database: SQLite itself cannot be forked in mid-transaction."""

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[None]:
        yield None


def test_a_child_of_a_fork_does_not_wait_for_the_parents_threads() -> None:
    group = GroupCommit(Nothing())  # type: ignore[arg-type]
    inside, go_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        inside.set()
        assert go_on.wait(10)

    holding = threading.Thread(target=group.run, args=(hold,))
    holding.start()
    assert inside.wait(10)
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        group.run(lambda _: None)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    go_on.set()
    holding.join(10)
