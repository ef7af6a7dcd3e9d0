"""What is broken, and where: services whose items can be moved into a table of moto's, and acts on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tensafe.operations.leases import Lease
from tensafe.operations.records import StreamRecord
from tensafe.privacy.ledger import Ledger
from tensafe.services import Services
from tensafe.storage.checks import check_writes
from tensafe.storage.dynamodb_items import DynamoDbItems, _attributes, _item
from tensafe.storage.ports import Delete, Item, Items, Key, Put, Write
from tests.fakes import MemoryAnchors, MemoryBlobs, MemoryItems
from tests.unit.operations.world import World

RUN: Final = "s-1:train:0"
SAMPLER: Final = "s-1:sample:0"
LARGE: Final = b"x" * 100_000
_BATCH: Final = 25
"""What BatchWriteItem takes."""

Site = tuple[str, str]
"""A module, and the function in it that writes."""


class Switch:
    """Items that lie in memory or in a table; who wrote, and the last transaction that was sent."""

    def __init__(self, inner: Items) -> None:
        self.inner = inner
        self.last: Sequence[Write] = ()
        self.sites: set[Site] = set()

    def get(self, key: Key) -> Item | None:
        return self.inner.get(key)

    def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        return self.inner.get_all(keys)

    def query(self, partition: str, **options: Any) -> list[Item]:
        return self.inner.query(partition, **options)

    def write(self, writes: Sequence[Write]) -> None:
        caller = sys._getframe(1)
        self.sites.add((caller.f_globals["__name__"], caller.f_code.co_qualname))
        self.last = writes
        self.inner.write(writes)

    write_relaxed = write


class TableWorld(World):
    """Everything in memory at first; `move` takes the items into a table."""

    def __init__(self) -> None:
        super().__init__()
        self.items = self.switch = Switch(self.items)
        self.services = self.open()
        self.lease: Lease | None = None
        self.notes: dict[str, Any] = {}
        """What an act remembers for its check."""

    def move(self, client: Any, table: str) -> None:
        """Take the items into an empty table as they are, at their versions."""
        self._client, self._table = client, table
        requests = [{"PutRequest": {"Item": _attributes(*_putting(item))}} for item in self.everything()]
        for first in range(0, len(requests), _BATCH):
            client.batch_write_item(RequestItems={table: requests[first : first + _BATCH]})
        self.switch.inner = DynamoDbItems(client, table, clock=self.clock_s)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """A copy of everything in memory: a check costs one request, and may go on working with it."""
        before = self.switch.inner, self.anchors, self.blobs, self.services, self.now_ms
        pages = self._client.get_paginator("scan").paginate(TableName=self._table, ConsistentRead=True)
        copy = MemoryItems(clock=self.clock_s)
        for page in pages:
            for attributes in page["Items"]:
                copy.place(*_putting(_item(attributes)))
        self.switch.inner = copy
        self.anchors, marks = MemoryAnchors(), self.anchors.marks
        self.anchors.marks |= marks
        assert isinstance(self.blobs, MemoryBlobs)
        self.blobs, stored = MemoryBlobs(), self.blobs.stored
        self.blobs.stored |= stored
        self.services = self.open()
        try:
            yield
        finally:
            self.switch.inner, self.anchors, self.blobs, self.services, self.now_ms = before

    def everything(self) -> list[Item]:
        """All items, while they are in memory."""
        assert isinstance(self.switch.inner, MemoryItems)
        return self.switch.inner.all()

    def ledger(self, services: Services) -> Ledger:
        return Ledger(self.items, services.vault, self.signer, self.anchors, clock_ms=self.clock_ms)

    def check_last(self, *, applied: bool) -> None:
        """The last transaction is in the table whole, or not at all."""
        for write in self.switch.last:
            if isinstance(write, Put):
                assert (self._version(write.key) > write.if_version) == applied, write.key
            elif isinstance(write, Delete) and applied:
                assert self._version(write.key) == 0, write.key  # else it may never have been there

    def orphans(self) -> set[str]:
        """Blobs that no item of the run names, not even a note of what may have to be deleted."""
        run = self.stream(RUN)
        named = {str(item.body.get("blob")) for item in [*self.partition(run.scope.name), *self.due()]}
        return self.blob_keys() - named

    def _version(self, key: Key) -> int:
        item = self.items.get(key)
        return 0 if item is None else item.version


def _putting(item: Item) -> tuple[Put, str]:
    """What makes the item as it is."""
    put = Put(item.key, item.body, item.version - 1, sealed=item.sealed, expires_at_s=item.expires_at_s)
    ((_, text),) = check_writes([put])
    return put, text


@dataclass(frozen=True)
class Act:
    """`prepare` has peace, `do` is broken and done again, `check` reads what it must have led to."""

    prepare: Callable[[TableWorld], object]
    do: Callable[[TableWorld, Services], object]
    check: Callable[[TableWorld], None]


def the_run(world: TableWorld) -> StreamRecord:
    return world.stream(RUN)
