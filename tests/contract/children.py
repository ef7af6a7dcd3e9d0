"""What the child processes of the contract tests do: `python -m tests.contract.children NAME ARGUMENTS`.

Each prints "ready" when its adapters are open, then one line for every acknowledged effect.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tensafe.auth.ceilings import Ceilings
from tensafe.auth.waits import SharedWaits
from tensafe.auth.windows import Windows
from tensafe.contracts.errors import RateLimited, TooManyRequests
from tensafe.storage.file_blobs import FileBlobs
from tensafe.storage.ports import BlobExists, ConditionFailed, Items, JsonValue, Key, Put, QueueSpec
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.storage.sqlite_queues import SqliteQueues
from tensafe.storage.unix_bell import UnixBell
from tests.contract.spending import books_over, open_spender

SPECS = (QueueSpec("jobs", fifo=True, max_receives=2), QueueSpec("samples", fifo=False, max_receives=2))


def open_queues(folder: Path) -> SqliteQueues:
    return SqliteQueues(folder / "queues.db", SPECS, UnixBell(folder / "bells"))


def open_blobs(folder: Path) -> FileBlobs:
    return FileBlobs(folder / "blobs", url_secret=b"s" * 32, base_url="http://127.0.0.1/blobs")


def blob_bytes(name: str) -> bytes:
    return f"blob {name} ".encode() * 3000


def say(line: object) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write_items(folder: str, first: str) -> None:
    """Two items in each transaction."""
    items = SqliteItems(Path(folder) / "items.db")
    say("ready")
    for number in _numbers(first):
        body: dict[str, JsonValue] = {"n": number, "pad": "x" * 500}
        items.write([Put(Key("left", f"{number:08d}"), body, 0), Put(Key("right", f"{number:08d}"), body, 0)])
        say(number)


def count_up(folder: str, rounds: str) -> None:
    """Raise a shared counter `rounds` times by read and conditional write."""
    items, key = SqliteItems(Path(folder) / "items.db"), Key("shared", "counter")
    say("ready")
    sys.stdin.readline()
    lost = 0
    for _ in range(int(rounds)):
        while True:
            item = items.get(key)
            count, version = (0, 0) if item is None else (item.body["n"], item.version)
            assert isinstance(count, int)
            try:
                items.write([Put(key, {"n": count + 1}, version)])
                break
            except ConditionFailed:
                lost += 1
    say(lost)


def hammer_items(folder: str, name: str, seconds: str) -> None:
    """Write without pause for a while: how many, and the longest wait in milliseconds."""
    items = SqliteItems(Path(folder) / "items.db")
    say("ready")
    sys.stdin.readline()
    end, count, longest_s = time.monotonic() + float(seconds), 0, 0.0
    while (begin := time.monotonic()) < end:
        items.write([Put(Key(name, f"{count:08d}"), {"n": count}, 0)])
        longest_s = max(longest_s, time.monotonic() - begin)
        count += 1
    say(f"{count} {longest_s * 1000:.1f}")


def send_messages(folder: str, first: str) -> None:
    queues = open_queues(Path(folder))
    say("ready")
    for number in _numbers(first):
        queues.send("jobs", {"n": number}, group=f"run-{number % 3}")
        say(number)


def work_messages(folder: str) -> None:
    """Receive and delete; says what has been deleted."""
    queues = open_queues(Path(folder))
    say("ready")
    while True:
        for message in queues.receive("samples", visibility_s=0.3, max_messages=3, wait_s=5):
            queues.delete("samples", message.receipt)
            say(message.body["n"])


def wait_for_message(folder: str, queue: str) -> None:
    """Says when, on the clock that all processes share, each message arrived."""
    queues = open_queues(Path(folder))
    say("ready")
    while True:
        for message in queues.receive(queue, visibility_s=60, wait_s=20):
            say(time.monotonic())
            queues.delete(queue, message.receipt)


def wait_for_bell(folder: str, topic: str) -> None:
    bell = UnixBell(Path(folder))
    heard = bell.count(topic)
    say("ready")
    while True:
        count = bell.wait(topic, since=heard, timeout_s=20)
        if count > heard:
            say(time.monotonic())
            heard = count


def put_blobs(folder: str, first: str) -> None:
    blobs = open_blobs(Path(folder))
    say("ready")
    for number in _numbers(first):
        blobs.put(f"runs/{number}", blob_bytes(str(number)))
        say(number)


def race_for_blobs(folder: str, mine: str, rounds: str) -> None:
    """Says which of the keys this process was the one to write."""
    blobs = open_blobs(Path(folder))
    say("ready")
    sys.stdin.readline()
    for number in range(int(rounds)):
        try:
            blobs.put(f"race/{number}", mine.encode() * 1000)
            say(number)
        except BlobExists:
            continue


def spend(folder: str, table: str, run_id: str) -> None:
    """Get ready in every domain that is named; once told, charge what the budget bears, and say how much."""
    with books_over(Path(folder), table) as books:
        say("ready")
        while domain := sys.stdin.readline().strip():
            spend_all = open_spender(books, domain, run_id)
            say("open")
            sys.stdin.readline()
            say(spend_all())


def open_items(where: str) -> Items:
    """A table on whatever AWS is, or a folder."""
    if where.startswith("table:"):
        from tensafe.storage.aws_clients import aws_client  # slow to import
        from tensafe.storage.dynamodb_items import DynamoDbItems

        return DynamoDbItems(aws_client("dynamodb"), where.removeprefix("table:"))
    return SqliteItems(Path(where) / "items.db")


def take_units(where: str, now_ms: str, limit: str, units: str) -> None:
    """Take `units` bytes with each operation until the window has no more; says how many operations."""
    windows = Windows(open_items(where), clock_ms=lambda: int(now_ms))
    say("ready")
    sys.stdin.readline()
    limits = {"operations": int(limit), "bytes": int(limit) * int(units)}
    taken = 0
    try:
        while True:
            windows.take("acme", {"operations": 1, "bytes": int(units)}, limits)
            taken += 1
    except RateLimited:
        say(taken)


def take_places(where: str, limit: str) -> None:
    """Take places among a tenant's waits until they are refused, a while; says how many."""
    waits = SharedWaits(open_items(where), int(limit))
    say("ready")
    sys.stdin.readline()
    taken = refused = 0
    while refused < 3:
        try:
            waits.begin("acme")
            taken += 1
        except TooManyRequests:
            refused += 1
    say(taken)


def multiply(where: str, now_ms: str, limit: str, batch_max: str) -> None:
    """Make things until there may be no more; says how many."""
    items = open_items(where)
    ceilings = Ceilings(items, clock_ms=lambda: int(now_ms))
    say("ready")
    sys.stdin.readline()

    def count(enough: int) -> int:
        return len(items.query("things", limit=enough))

    made = 0
    while ceilings.take("acme", "things", int(limit), count, batch_max=int(batch_max)):
        items.write([Put(Key("things", f"{os.getpid()}-{made}"), {}, 0)])
        made += 1
    say(made)


def _numbers(first: str) -> Iterator[int]:
    number = int(first)
    while True:
        yield number
        number += 1


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
