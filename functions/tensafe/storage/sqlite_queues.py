"""Queues in one SQLite file: the embedded counterpart of SQS, FIFO and standard.

A message can be received when its `ready_at_ms` has come. In a FIFO queue only the oldest message of
each group has one, so a receive is one short index scan however many messages wait, and a group is
locked for as long as its oldest message is in flight.

A send is on the disk when it returns. What follows it survives every process but not a loss of power,
after which a message may come once more: that can happen anyway, and saves three waits for the disk.
"""

from __future__ import annotations

import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tensafe.contracts.errors import InvalidRequest
from tensafe.storage.checks import (
    DEDUP_WINDOW_S,
    check_receive,
    check_send,
    check_visibility,
    declared_queues,
    decode_body,
)
from tensafe.storage.ports import (
    VISIBILITY_MAX_S,
    Bell,
    JsonValue,
    Message,
    QueueSpec,
    StaleReceipt,
)
from tensafe.storage.sqlite_database import Database, Schema
from tensafe.storage.sqlite_group import GroupCommit

RECHECK_S: Final = 1.0
"""A waiting receive looks again after this long, in case a ring of the bell was lost."""

SCHEMA: Final = Schema(
    component="queues",
    version=1,
    statements=(
        """CREATE TABLE IF NOT EXISTS messages (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            queue TEXT NOT NULL,
            group_id TEXT,
            body TEXT NOT NULL,
            receives INTEGER NOT NULL DEFAULT 0,
            ready_at_ms INTEGER,
            receipt TEXT,
            received_at_ms INTEGER
        ) STRICT""",
        """CREATE INDEX IF NOT EXISTS messages_ready ON messages (queue, ready_at_ms, id)
            WHERE ready_at_ms IS NOT NULL""",
        "CREATE INDEX IF NOT EXISTS messages_group ON messages (queue, group_id, id)",
        """CREATE TABLE IF NOT EXISTS message_dedup (
            queue TEXT NOT NULL,
            dedup_id TEXT NOT NULL,
            seen_at_ms INTEGER NOT NULL,
            PRIMARY KEY (queue, dedup_id)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX IF NOT EXISTS message_dedup_age ON message_dedup (seen_at_ms)",
    ),
)

# What FIFO promises is decided here: a message gets a ready time if it is alone in its group, or later,
# when the one before it leaves.
SELECT_READY: Final = """SELECT id, group_id, body, receives FROM messages
    WHERE queue = ? AND ready_at_ms <= ? ORDER BY ready_at_ms, id LIMIT ?"""
SELECT_NEXT_READY: Final = """SELECT ready_at_ms FROM messages
    WHERE queue = ? AND ready_at_ms IS NOT NULL ORDER BY ready_at_ms LIMIT 1"""
GROUP_HAS_MESSAGES: Final = "SELECT 1 FROM messages WHERE queue = ? AND group_id = ? LIMIT 1"
PROMOTE_NEXT: Final = """UPDATE messages SET ready_at_ms = ? WHERE ready_at_ms IS NULL AND id =
    (SELECT id FROM messages WHERE queue = ? AND group_id = ? ORDER BY id LIMIT 1)"""
HAND_BACK: Final = """UPDATE messages SET ready_at_ms = :now
    WHERE queue = :queue AND ready_at_ms > :now AND receipt IS NOT NULL"""
COUNT: Final = "SELECT count(*) FROM messages WHERE queue = ?"
_INSERT: Final = "INSERT INTO messages (queue, group_id, body, ready_at_ms) VALUES (?, ?, ?, ?)"
_HIDE: Final = """UPDATE messages
    SET receives = receives + 1, receipt = ?, ready_at_ms = ?, received_at_ms = ? WHERE id = ?"""
_EXTEND: Final = """UPDATE messages SET ready_at_ms = min(?, received_at_ms + ?)
    WHERE id = ? AND queue = ? AND receipt = ? AND ready_at_ms > ?"""
_DELETE_RECEIVED: Final = "DELETE FROM messages WHERE id = ? AND queue = ? AND receipt = ? RETURNING group_id"
_DELETE: Final = "DELETE FROM messages WHERE id = ?"
_SEEN: Final = "SELECT 1 FROM message_dedup WHERE queue = ? AND dedup_id = ? AND seen_at_ms > ?"
_REMEMBER: Final = "INSERT OR REPLACE INTO message_dedup VALUES (?, ?, ?)"
FORGET_OLD: Final = """DELETE FROM message_dedup WHERE (queue, dedup_id) IN
    (SELECT queue, dedup_id FROM message_dedup WHERE seen_at_ms <= ? ORDER BY seen_at_ms LIMIT 10)"""


class SqliteQueues:
    """The queues port on a file that several processes share. Implements `Queues`."""

    def __init__(
        self,
        path: Path,
        specs: Sequence[QueueSpec],
        bell: Bell,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives Unix seconds; all processes of the file need the same one."""
        self._queues = declared_queues(specs)
        self._database = Database(path, SCHEMA)
        self._group = GroupCommit(self._database)
        self._bell = bell
        self._clock = clock

    def send(
        self,
        queue: str,
        body: Mapping[str, JsonValue],
        *,
        group: str | None = None,
        dedup_id: str | None = None,
        delay_s: float = 0.0,
    ) -> None:
        spec, _ = self._declared(queue)
        text = check_send(spec, body, group=group, dedup_id=dedup_id, delay_s=delay_s)

        def append(connection: sqlite3.Connection) -> None:
            now_ms = self._now_ms()
            if dedup_id is None or not _seen_before(connection, queue, dedup_id, now_ms):
                _append(connection, queue, group, text, now_ms + math.ceil(delay_s * 1000))

        self._group.run(append)
        self._ring(queue)

    def receive(
        self, queue: str, *, visibility_s: float, max_messages: int = 1, wait_s: float = 0.0
    ) -> list[Message]:
        self._declared(queue)
        check_receive(visibility_s=visibility_s, max_messages=max_messages, wait_s=wait_s)
        deadline = time.monotonic() + wait_s
        while True:
            heard = self._bell.count(_topic(queue))
            pause_s = self._until_ready_s(queue)
            if pause_s <= 0:
                messages = self._receive_now(queue, visibility_s, max_messages)
                if messages:
                    return messages
                pause_s = self._until_ready_s(queue)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return []
            if pause_s > 0:
                self._bell.wait(_topic(queue), since=heard, timeout_s=min(left_s, pause_s, RECHECK_S))

    def extend(self, queue: str, receipt: str, visibility_s: float) -> None:
        self._declared(queue)
        check_visibility(visibility_s)
        message_id = _message_id(receipt)
        with self._database.writing(durable=False) as connection:
            now_ms = self._now_ms()
            hidden_until_ms = now_ms + math.ceil(visibility_s * 1000)
            values = (hidden_until_ms, VISIBILITY_MAX_S * 1000, message_id, queue, receipt, now_ms)
            if connection.execute(_EXTEND, values).rowcount == 0:
                raise StaleReceipt(f"the message of {queue!r} is no longer held by this receipt")
        if visibility_s == 0:
            self._ring(queue)

    def delete(self, queue: str, receipt: str) -> None:
        self._declared(queue)
        message_id = _message_id(receipt)
        with self._database.writing(durable=False) as connection:
            row = connection.execute(_DELETE_RECEIVED, (message_id, queue, receipt)).fetchone()
            uncovered = row is not None and _promote_next(connection, queue, row[0], self._now_ms())
        if uncovered:
            self._ring(queue)

    def depth(self, queue: str) -> int:
        self._declared(queue)
        with self._database.reading() as connection:
            count: int = connection.execute(COUNT, (queue,)).fetchone()[0]
        return count

    def redrive(self, queue: str, *, max_messages: int = 100) -> int:
        spec, is_dead = self._declared(queue)
        if is_dead:
            raise InvalidRequest(f"{queue!r} is itself a dead queue; name its source", field="queue")
        moved = 0
        with self._database.writing() as connection:
            now_ms = self._now_ms()
            # One at a time: moving the oldest of a group uncovers the next one.
            while moved < max_messages:
                row = connection.execute(SELECT_READY, (spec.dead_queue, now_ms, 1)).fetchone()
                if row is None:
                    break
                _move(connection, row, spec.dead_queue, queue, now_ms)
                moved += 1
        if moved:
            self._ring(queue)
        return moved

    def hand_back(self, queue: str) -> int:
        """Make every message in flight receivable now; how many. For when all its consumers are dead."""
        self._declared(queue)
        with self._database.writing() as connection:
            values = {"queue": queue, "now": self._now_ms()}
            handed = connection.execute(HAND_BACK, values).rowcount
        if handed:
            self._ring(queue)
        return handed

    def close(self) -> None:
        """Close every connection; later calls raise Unavailable."""
        self._database.close()

    def _receive_now(self, queue: str, visibility_s: float, max_messages: int) -> list[Message]:
        spec, is_dead = self._declared(queue)
        messages: list[Message] = []
        died = False
        with self._database.writing(durable=False) as connection:
            now_ms = self._now_ms()
            hidden_until_ms = now_ms + math.ceil(visibility_s * 1000)
            while len(messages) < max_messages:
                rows = connection.execute(
                    SELECT_READY, (queue, now_ms, max_messages - len(messages))
                ).fetchall()
                if not rows:
                    break
                for row in rows:
                    message_id, group, text, receives = row
                    if not is_dead and receives >= spec.max_receives:
                        _move(connection, row, queue, spec.dead_queue, now_ms)
                        died = True
                        continue
                    receipt = f"{message_id}.{secrets.token_hex(16)}"
                    connection.execute(_HIDE, (receipt, hidden_until_ms, now_ms, message_id))
                    messages.append(Message(queue, decode_body(text), receipt, receives + 1, group))
        if died:
            self._ring(spec.dead_queue)
        return messages

    def _until_ready_s(self, queue: str) -> float:
        """Seconds until the next message can be received, 0 or less if one can; infinity if none waits."""
        with self._database.reading() as connection:
            row = connection.execute(SELECT_NEXT_READY, (queue,)).fetchone()
        return math.inf if row is None else (row[0] - self._now_ms()) / 1000

    def _declared(self, queue: str) -> tuple[QueueSpec, bool]:
        try:
            return self._queues[queue]
        except KeyError as error:
            raise InvalidRequest(f"no such queue: {queue[:80]!r}", field="queue") from error

    def _ring(self, queue: str) -> None:
        self._bell.ring(_topic(queue))

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _topic(queue: str) -> str:
    return f"queue/{queue}"


def _message_id(receipt: str) -> int:
    """The row that a receipt names; -1, which no row has, for what is not a receipt."""
    number = receipt.partition(".")[0]
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 19 else -1


def _seen_before(connection: sqlite3.Connection, queue: str, dedup_id: str, now_ms: int) -> bool:
    """Whether `dedup_id` was sent within the window; remembers it if not, and forgets some old ones."""
    oldest_ms = now_ms - DEDUP_WINDOW_S * 1000
    if connection.execute(_SEEN, (queue, dedup_id, oldest_ms)).fetchone() is not None:
        return True
    connection.execute(FORGET_OLD, (oldest_ms,))
    connection.execute(_REMEMBER, (queue, dedup_id, now_ms))
    return False


def _append(
    connection: sqlite3.Connection, queue: str, group: str | None, text: str, ready_at_ms: int
) -> None:
    """Put a message at the end of its queue; behind others of its group it has no ready time yet."""
    behind = (
        group is not None and connection.execute(GROUP_HAS_MESSAGES, (queue, group)).fetchone() is not None
    )
    connection.execute(_INSERT, (queue, group, text, None if behind else ready_at_ms))


def _promote_next(connection: sqlite3.Connection, queue: str, group: str | None, now_ms: int) -> bool:
    """Give the oldest message that is left in the group its ready time; whether there was one."""
    return group is not None and connection.execute(PROMOTE_NEXT, (now_ms, queue, group)).rowcount == 1


def _move(
    connection: sqlite3.Connection,
    row: tuple[int, str | None, str, int],
    source: str,
    target: str,
    now_ms: int,
) -> None:
    """Take the oldest message of its group to the end of another queue, with no receives."""
    message_id, group, text, _ = row
    connection.execute(_DELETE, (message_id,))
    _promote_next(connection, source, group, now_ms)
    _append(connection, target, group, text, now_ms)
