"""One SQLite file as the embedded stores use it: durable, shared by processes, errors made ours."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import ConfigurationError, IntegrityError, Unavailable
from tensafe.storage.file_lock import FairFileLock
from tensafe.storage.ports import StorageError

LOCK_TIMEOUT_S: Final = 10.0
PAGE_SIZE_BYTES: Final = 4096
_log = logging.getLogger(__name__)
_creating = threading.Lock()

_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_UNAVAILABLE: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
}
_VERSIONS_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT"
)


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one component; several components may share a file."""

    component: str
    version: int
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Session:
    """A connection with the lock that its writes are made under."""

    connection: sqlite3.Connection
    lock: FairFileLock

    def close(self) -> None:
        self.connection.close()
        self.lock.close()


class Database:
    """A pool of connections in WAL mode with `synchronous=FULL` and `secure_delete=ON`.

    A commit that returns has reached the disk. A connection serves one thread at a time, and there are
    as many as threads were ever inside at once, however many threads come and go. After a fork
    the child opens its own.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        self._idle: deque[_Session] = deque()
        self._inherited: list[deque[_Session]] = []
        self._pid = os.getpid()
        self._closed = threading.Event()
        with _errors_made_ours(path):
            _create_private_file(path)
            session = self._open()
            try:
                _install(session, schema, path)
            except BaseException:
                session.close()
                raise
            self._idle.append(session)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for one SELECT."""
        with _errors_made_ours(self._path), self._session() as session:
            yield session.connection

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction that commits durably at the end of the block, or leaves nothing behind.

        Without `durable` the commit is not forced to the disk: no process's death loses it, a loss of
        power may, until a later durable commit returns. Raises Unavailable when no turn to write came
        within 10 s.
        """
        with _errors_made_ours(self._path), self._session() as session, _locked(session.lock):
            connection = session.connection
            if not durable:
                connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            finally:
                if not durable and not connection.in_transaction:
                    connection.execute("PRAGMA synchronous=FULL")

    def scrub(self) -> None:
        """Empty the write-ahead log, which still holds what was deleted; secure_delete cleans the pages.

        Raises Unavailable if readers kept the log busy for 10 s: deleted bytes may remain, so scrub again.
        """
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        with _errors_made_ours(self._path), self._session() as session:
            while not _empty_log(session):
                if time.monotonic() >= deadline:
                    raise Unavailable("readers keep the write-ahead log busy; scrub again")
                time.sleep(0.01)

    def close(self) -> None:
        """Close every connection; those in use close when their caller is done."""
        self._closed.set()
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().close()

    @contextmanager
    def _session(self) -> Iterator[_Session]:
        if self._closed.is_set():
            raise Unavailable("the store has been closed")
        if self._pid != os.getpid():
            # A connection must not be used, nor closed, on the other side of a fork.
            self._inherited.append(self._idle)
            self._idle, self._pid = deque(), os.getpid()
        try:
            session = self._idle.pop()
        except IndexError:
            session = self._open()
        try:
            yield session
        finally:
            if session.connection.in_transaction:
                session.close()  # the rollback failed: closing is what undoes it
            else:
                self._idle.append(session)
            if self._closed.is_set():
                self.close()

    def _open(self) -> _Session:
        connection = sqlite3.connect(
            self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("PRAGMA temp_store=MEMORY")  # what a statement would undo stays off the disk
        return _Session(connection, FairFileLock(self._path))


def _create_private_file(path: Path) -> None:
    """Make the file 0600 before SQLite would make it by the umask.

    A file that is there is not opened: closing any descriptor of it would drop the locks that SQLite
    holds on it for other connections of this process.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _creating:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
    directory_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


def _install(session: _Session, schema: Schema, path: Path) -> None:
    """Create what is missing; ConfigurationError if another version made the tables."""
    connection = session.connection
    with _locked(session.lock):
        connection.execute(f"PRAGMA page_size={PAGE_SIZE_BYTES}")  # has effect on a new file alone
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise ConfigurationError(f"{path} is on a file system without shared memory; use a local disk")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_VERSIONS_TABLE)
        connection.execute(
            "INSERT OR IGNORE INTO schema_versions VALUES (?, ?)", (schema.component, schema.version)
        )
        for statement in schema.statements:
            connection.execute(statement)
        connection.execute("COMMIT")
        found = connection.execute(
            "SELECT version FROM schema_versions WHERE component = ?", (schema.component,)
        ).fetchone()[0]
    if found != schema.version:
        raise ConfigurationError(
            f"{path} holds {schema.component} of version {found}, this program writes {schema.version}"
        )


def _empty_log(session: _Session) -> bool:
    """Whether no reader was in the way; waits for one only shortly, since writers stand still meanwhile."""
    connection = session.connection
    with _locked(session.lock):
        connection.execute("PRAGMA busy_timeout=50")
        try:
            busy: int = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        finally:
            connection.execute(f"PRAGMA busy_timeout={LOCK_TIMEOUT_S * 1000:.0f}")
    return not busy


@contextmanager
def _locked(lock: FairFileLock) -> Iterator[None]:
    lock.acquire(LOCK_TIMEOUT_S)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _errors_made_ours(path: Path) -> Iterator[None]:
    """SQLite and file errors as the service's: busy, full, failing disk are Unavailable."""
    try:
        yield
    except sqlite3.Error as error:
        code: int | None = getattr(error, "sqlite_errorcode", None)
        if code is None:  # misuse of the module, not a condition of the store
            raise
        _log.error("sqlite error %s on %s", getattr(error, "sqlite_errorname", code), path.name)
        primary = code & 0xFF
        if primary in _DAMAGED:
            raise IntegrityError(f"the store {path.name} is damaged; restore it from a backup") from error
        if primary in _UNAVAILABLE:
            raise Unavailable(f"the store {path.name} is busy, full or failing") from error
        raise StorageError(f"the store {path.name} refused the operation") from error
    except OSError as error:
        _log.error("file error %s on %s", error.errno, path.name)
        raise Unavailable(f"the store {path.name} cannot be opened or is out of resources") from error
