"""Group commit: threads that write at the same time share one transaction, and so one wait for the disk.

Each piece of work keeps its own fate. One whose condition fails is undone alone; if the shared
transaction itself fails, every piece is tried again in a transaction of its own.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tensafe.contracts.errors import Unavailable
from tensafe.storage.file_lock import Busy
from tensafe.storage.ports import ConditionFailed
from tensafe.storage.sqlite_database import Database

Work = Callable[[sqlite3.Connection], None]


@dataclass(slots=True, eq=False)
class _Entry:
    work: Work
    durable: bool
    done: bool = False
    error: BaseException | None = None


class GroupCommit:
    """Runs work in transactions of one database. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._waiting: list[_Entry] = []

    def run(self, work: Work, *, durable: bool = True) -> None:
        """Return once `work` is committed; raises what it raised, with nothing of it applied.

        `work` may run twice, on a rolled-back database. It raises ConditionFailed to be undone alone.
        Without `durable` the commit may be lost with the machine, though not with the process, until a
        later durable one returns.
        """
        if self._pid != os.getpid():
            self._begin()  # after a fork: whoever held the locks is not here
        entry = _Entry(work, durable)
        with self._guard:
            self._waiting.append(entry)
        with self._turn:  # whoever gets here first commits for all that wait
            if not entry.done:
                with self._guard:
                    batch, self._waiting = self._waiting, []
                self._commit(batch)
        if entry.error is not None:
            raise entry.error

    def _commit(self, batch: list[_Entry]) -> None:
        try:
            if len(batch) == 1 or not self._commit_together(batch):
                for entry in batch:
                    self._commit_alone(entry)
        finally:
            for entry in batch:
                if not entry.done:  # an interrupt (Ctrl-C) came between
                    entry.error = Unavailable("the write was interrupted; try again")
                    entry.done = True

    def _commit_together(self, batch: list[_Entry]) -> bool:
        """Whether it worked; if not, nothing has been applied and no entry is done."""
        try:
            with self._database.writing(durable=any(entry.durable for entry in batch)) as connection:
                errors: list[Exception | None] = [_attempt(connection, entry.work) for entry in batch]
        except Busy as busy:
            errors = [busy] * len(batch)  # they have waited together; none waits again
        except Exception:  # noqa: BLE001 - each gets its own error when it is tried alone
            return False
        for entry, error in zip(batch, errors, strict=True):
            entry.error, entry.done = error, True
        return True

    def _commit_alone(self, entry: _Entry) -> None:
        try:
            with self._database.writing(durable=entry.durable) as connection:
                entry.work(connection)
        except Exception as error:  # noqa: BLE001 - raised in the thread whose work it is
            entry.error = error
        entry.done = True


def _attempt(connection: sqlite3.Connection, work: Work) -> ConditionFailed | None:
    """Apply one piece of a shared transaction, or undo it alone."""
    connection.execute("SAVEPOINT piece")
    failed: ConditionFailed | None = None
    try:
        work(connection)
    except ConditionFailed as error:
        failed = error
        connection.execute("ROLLBACK TO piece")
    connection.execute("RELEASE piece")
    return failed
