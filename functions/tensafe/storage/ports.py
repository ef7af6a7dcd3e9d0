"""The four storage ports and the bell: what the service may ask of any platform.

Every promise here is kept by each adapter and checked by tests/contract, which runs one suite over
all of them. The limits are those of DynamoDB, SQS, S3 and KMS, so that nothing written against the
embedded adapters has to bend later. All calls are synchronous and safe to use from several threads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from tensafe.contracts.errors import InvalidRequest, TensafeError

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]

ITEM_MAX_BYTES: Final = 399 * 1024
"""Largest item: keys, body as UTF-8 JSON and sealed bytes together. DynamoDB's 400 KB also hold the
attribute names, the version and the expiry, for which 1 KB is kept."""
TRANSACTION_MAX_WRITES: Final = 100
TRANSACTION_MAX_BYTES: Final = 4 * 1000 * 1000
"""Largest sum of the items that one transaction puts."""
MESSAGE_MAX_BYTES: Final = 256 * 1024
"""Largest message body as ASCII JSON."""
VISIBILITY_MAX_S: Final = 12 * 3600

OCTETS: Final = "application/octet-stream"

_PARTITION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@=+-]{0,511}")
_SORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@=+-]{0,511}")
_BLOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,199}(/[A-Za-z0-9][A-Za-z0-9_.=-]{0,199}){0,15}")
BLOB_KEY_MAX_CHARS: Final = 900


class StorageError(TensafeError):
    """Base of what an adapter raises."""

    code = "storage_error"


class ConditionFailed(StorageError):
    """A conditional write lost; nothing of the transaction was applied. `index` names the write."""

    code = "condition_failed"

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class StaleReceipt(StorageError):
    """The message was deleted, or its visibility ran out and it may belong to somebody else now."""

    code = "stale_receipt"


class BlobExists(StorageError):
    """Write-if-absent found the key taken."""

    code = "blob_exists"


class BlobMissing(StorageError):
    """No blob under the key."""

    code = "blob_missing"


class UnwrapFailed(StorageError):
    """The wrapped key does not authenticate under this key ring and encryption context."""

    code = "unwrap_failed"


@dataclass(frozen=True, slots=True)
class Key:
    """An item's address: `partition` groups what is queried together, `sort` orders within it."""

    partition: str
    sort: str

    def __post_init__(self) -> None:
        if not _PARTITION.fullmatch(self.partition):
            raise InvalidRequest(f"not an item partition: {self.partition[:80]!r}", field="partition")
        if not _SORT.fullmatch(self.sort):
            raise InvalidRequest(f"not an item sort key: {self.sort[:80]!r}", field="sort")


@dataclass(frozen=True, slots=True)
class Item:
    """A stored record. `version` counts its writes from 1. `sealed` is ciphertext, never clear text."""

    key: Key
    version: int
    body: Mapping[str, JsonValue]
    sealed: bytes = b""
    expires_at_s: int | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """Write an item if its present version is `if_version`; 0 means that it must be absent.

    An item whose `expires_at_s` (Unix seconds) has passed is never returned by `get` or `query`, and
    counts as absent in conditions; when it is physically removed is not promised.
    """

    key: Key
    body: Mapping[str, JsonValue]
    if_version: int
    sealed: bytes = b""
    expires_at_s: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove an item if its version is `if_version` (0: absent); None removes what is there, or nothing."""

    key: Key
    if_version: int | None


@dataclass(frozen=True, slots=True)
class Check:
    """Apply the transaction only if the item is at `if_version`; 0 means absent."""

    key: Key
    if_version: int


Write = Put | Delete | Check


class Items(Protocol):
    """Records with strongly consistent reads and all-or-nothing conditional writes."""

    def get(self, key: Key) -> Item | None:
        """The item, or None; sees every write acknowledged before the call."""

    def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        """1 to 100 distinct items in one request, in the order of `keys`: each as `get` finds it.

        Of items that one transaction wrote it may find some and not yet the others.
        """

    def query(
        self,
        partition: str,
        *,
        first: str = "",
        last: str | None = None,
        limit: int = 100,
        descending: bool = False,
    ) -> list[Item]:
        """Up to `limit` (1 or more) items of one partition with first <= sort <= last, in byte order of sort.

        The bounds are any UTF-8 text; `first` above `last` finds nothing.
        """

    def write(self, writes: Sequence[Write]) -> None:
        """Apply 1 to 100 writes to distinct keys, all or nothing, durably.

        Raises ConditionFailed (nothing applied) or InvalidRequest (empty, over 100, two writes to
        one key, an item over ITEM_MAX_BYTES, a body that is not JSON, or more than
        TRANSACTION_MAX_BYTES in all).
        """

    def write_relaxed(self, writes: Sequence[Write]) -> None:
        """As `write`, for what may be lost with the machine's power until a later `write` returns.

        All see it at once, and it outlives every process; a later write never becomes durable before it.
        """


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue: FIFO per group or standard. After `max_receives` a message moves to `dead_queue`."""

    name: str
    fifo: bool
    max_receives: int = 3

    @property
    def dead_queue(self) -> str:
        return f"{self.name}-dead"


@dataclass(frozen=True, slots=True)
class Message:
    """A received message: `receipt` is this receive's handle, `receives` counts receives from 1."""

    queue: str
    body: Mapping[str, JsonValue]
    receipt: str
    receives: int
    group: str | None = None


class Queues(Protocol):
    """At-least-once queues with visibility, FIFO groups and dead letters.

    In a FIFO queue a group is locked while one of its messages is in flight: messages of a group arrive
    in send order, no two of them in one receive. A dead queue is a queue of the same kind from which
    nothing dies further. A queue that was not declared to the adapter raises InvalidRequest.

    A queue wakes workers and decides nothing: a message may arrive twice, and a receipt may be overtaken
    without its holder hearing of it, so who owns what a message is about is a matter of leases and
    conditional writes. A platform may round durations up to whole seconds.
    """

    def send(
        self,
        queue: str,
        body: Mapping[str, JsonValue],
        *,
        group: str | None = None,
        dedup_id: str | None = None,
        delay_s: float = 0.0,
    ) -> None:
        """Enqueue durably. A FIFO queue needs `group`; a `dedup_id` that it had within 5 minutes is dropped.

        That holds within a group: an id that another group had may be dropped or not, so use none in
        two. A standard queue drops duplicates where the platform can (SQS cannot). `delay_s` is for
        standard queues alone (0 to 900), `group` for FIFO queues alone. Both labels are 1 to 128
        printable ASCII characters. Raises InvalidRequest, also over MESSAGE_MAX_BYTES.
        """

    def receive(
        self, queue: str, *, visibility_s: float, max_messages: int = 1, wait_s: float = 0.0
    ) -> list[Message]:
        """Up to 10 messages, hidden for `visibility_s`; waits up to `wait_s` (at most 20) for one.

        A message received more than `max_receives` times is moved to the dead queue instead.
        `visibility_s` is above 0 and at most 12 h. Without a wait, a platform may miss what is there.
        """

    def extend(self, queue: str, receipt: str, visibility_s: float) -> None:
        """Hide the message for `visibility_s` from now (0: hand it back at once).

        Raises StaleReceipt if the message is not in flight. If it is, in somebody else's hand, the
        platform may raise that or hide it for so long all the same. It is never hidden for longer
        than 12 h after the receive: what takes longer must finish in parts and send itself a new message.
        """

    def delete(self, queue: str, receipt: str) -> None:
        """Remove the message. What is already gone is not an error; what has passed on may go or stay."""

    def depth(self, queue: str) -> int:
        """About how many messages wait or are in flight; on AWS as they were up to a minute ago."""

    def redrive(self, queue: str, *, max_messages: int = 100) -> int:
        """Move dead letters that nobody reads back to `queue`, behind what waits; how many moved.

        Their receive count starts anew. If it is cut short, one letter may come twice.
        """


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """Size and lower-case hexadecimal SHA-256 of a stored blob."""

    key: str
    size_bytes: int
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def check_blob_key(key: str) -> str:
    """Return `key` if every blob store accepts it, else raise InvalidRequest.

    1 to 16 segments joined by '/', each of 1 to 200 letters, digits, '_', '.', '=', '-' and beginning
    with a letter or digit; 900 characters at most.
    """
    if len(key) > BLOB_KEY_MAX_CHARS or not _BLOB.fullmatch(key):
        raise InvalidRequest(f"not a blob key: {key[:80]!r}", field="blob_key")
    return key


class Blobs(Protocol):
    """Immutable objects with verified checksums."""

    def put(self, key: str, data: bytes) -> BlobInfo:
        """Write durably if absent. Raises BlobExists, unless the very same bytes are there."""

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes, or a range. A whole read is verified: IntegrityError, BlobMissing.

        A range that passes the end is cut short, down to no bytes; a negative one is InvalidRequest.
        """

    def head(self, key: str) -> BlobInfo | None:
        """Size and checksum, or None."""

    def delete(self, key: str) -> None:
        """Remove it; removing what is not there is not an error."""

    def presign_get(self, key: str, *, expires_s: int, media_type: str = OCTETS) -> str:
        """A URL that returns the stored bytes, as `media_type`, to whoever holds it until it expires.

        1 s to 7 days; on AWS it ends earlier where the credentials that signed it do. Whether the blob
        exists is found out by whoever follows the URL.
        """


class KeyRing(Protocol):
    """Wraps data keys under a key that never leaves it."""

    @property
    def key_id(self) -> str:
        """Names the wrapping key in logs and records; not secret."""

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        """Encrypt a data key (1 to 1024 bytes), bound to the encryption context.

        The context is not secret and needed, whole, to unwrap. InvalidRequest if it is empty.
        """

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The data key. Raises UnwrapFailed for another context, another key or altered bytes.

        KMS does not tell some altered bytes from a key that it may not use: both are Unavailable then.
        """

    def check(self, context: Mapping[str, str]) -> None:
        """Raise Unavailable if no data key could be wrapped now with this context.

        Asks whoever holds the key, and loads nothing that only wrapping needs.
        """


class Bell(Protocol):
    """Wakes waiters, in other processes too where the platform can (AWS cannot).

    A hint: it may be lost or false, never relied on for truth.
    """

    def ring(self, topic: str) -> None:
        """Wake whoever waits for `topic`. Never blocks, never raises."""

    def wait(self, topic: str, *, since: int, timeout_s: float) -> int:
        """Block until the topic's count passes `since` or time runs out; the present count."""

    def count(self, topic: str) -> int:
        """Rings of `topic` seen by this process: read it, check the truth, then wait(since=it)."""
