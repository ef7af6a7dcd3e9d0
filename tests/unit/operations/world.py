"""The real rooms, wired as in service, over memory or SQLite, with a clock that the test moves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensafe.operations import layout
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind
from tensafe.operations.doorbell import queue_specs, sample_queue, train_queue
from tensafe.operations.leases import Lease
from tensafe.operations.records import Failure, Operation, OpKind, Result, StreamKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.services import Ports, Services, wire
from tensafe.storage.ports import Blobs, Item, Items, Queues, Write
from tensafe.storage.sqlite_items import SqliteItems
from tensafe.storage.sqlite_queues import SqliteQueues
from tests.fakes import (
    MemoryAnchors,
    MemoryBell,
    MemoryBlobs,
    MemoryItems,
    MemoryKeyRing,
    MemoryQueues,
    memory_signer,
)

BASE = "acme/tiny"
TENANT = "acme"
TRAIN = train_queue(BASE)
SAMPLE = sample_queue(BASE)
LEASE_S = 30.0


class World:
    """Services and what tests do to them. `replace` exchanges a port for a wrapper around it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.now_ms = 1_700_000_000_000
        self._numbers = itertools.count()
        self.bell = MemoryBell()
        self.keyring = MemoryKeyRing()
        self.signer = memory_signer()
        self.anchors = MemoryAnchors()
        self.blobs: Blobs = MemoryBlobs()
        specs = queue_specs([BASE])
        if folder is None:
            self.items: Items = MemoryItems(clock=self.clock_s)
            self.queues: Queues = MemoryQueues(specs, self.bell, clock=self.clock_s)
        else:
            self.items = SqliteItems(folder / "items.db", clock=self.clock_s)
            self.queues = SqliteQueues(folder / "queues.db", specs, self.bell, clock=self.clock_s)
        self.services = self.open()

    def open(self, **ports: Any) -> Services:
        """Another process's view of the same stores: nothing is cached in it. `ports` replace some."""
        chosen = {
            "items": self.items,
            "queues": self.queues,
            "blobs": self.blobs,
            "keyring": self.keyring,
            "bell": self.bell,
            "signer": self.signer,
            "anchors": self.anchors,
            "queue_specs": tuple(queue_specs([BASE])),
        }
        return wire(Ports(**{**chosen, **ports}), {}, lease_s=LEASE_S, clock_ms=self.clock_ms)

    def clock_ms(self) -> int:
        return self.now_ms

    def clock_s(self) -> float:
        return self.now_ms / 1000

    def later(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)

    # Streams and operations

    def run(self, run_id: str = "s-1:train:0", tenant: str = TENANT, first: bool = True) -> StreamRecord:
        """A run, with its first operation completed unless told otherwise."""
        record, creation = self.services.streams.creation(run_id, tenant, StreamKind.RUN, BASE)
        operation = self.services.submissions.create(record, creation, Submission(0, OpKind.NOOP, b"{}"))
        if first:
            self.complete(record, operation)
            self.drain(TRAIN)
        return self.stream(run_id)

    def sampler(self, sampler_id: str = "s-1:sample:0", tenant: str = TENANT) -> StreamRecord:
        record, creation = self.services.streams.creation(sampler_id, tenant, StreamKind.SAMPLER, BASE)
        self.items.write(creation)
        return record

    def stream(self, stream_id: str) -> StreamRecord:
        found = self.services.streams.find(stream_id)
        assert found is not None
        return found

    def submit(
        self,
        stream: StreamRecord,
        seq: int,
        payload: bytes = b"{}",
        *,
        kind: OpKind = OpKind.NOOP,
        key: str | None = None,
    ) -> Operation:
        return self.services.submissions.submit(stream, Submission(seq, kind, payload, idempotency_key=key))

    def append(self, stream: StreamRecord, payload: bytes = b"{}", key: str | None = None) -> Operation:
        return self.services.submissions.append(
            stream, Submission(0, OpKind.NOOP, payload, idempotency_key=key)
        )

    def complete(
        self,
        stream: StreamRecord,
        operation: Operation,
        data: bytes = b"{}",
        conditions: Sequence[Write] = (),
    ) -> None:
        running = self.services.outcomes.start(operation, conditions)
        self.services.outcomes.complete(stream, running, Result("application/json", data), conditions)

    def fail(self, stream: StreamRecord, operation: Operation) -> None:
        self.services.outcomes.fail(stream, operation, Failure("invalid_request", "no", "user"))

    def op(self, stream: StreamRecord, seq: int) -> Operation:
        return self.services.outcomes.get(stream, seq)

    def log(self, stream: StreamRecord) -> list[Operation]:
        return self.services.outcomes.operations(stream.stream_id, limit=1000)

    def claim(self, stream: StreamRecord, owner: str = "trainer-a") -> Lease:
        lease = self.services.leases.claim(stream.stream_id, owner)
        assert lease is not None
        return lease

    def checkpoint(
        self,
        run: StreamRecord,
        name: str,
        *,
        data: bytes = b"weights",
        ttl_s: int | None = None,
        overwrite: bool = False,
        ephemeral: bool = False,
        kind: CheckpointKind = CheckpointKind.TRAINING,
        idle_s: int | None = None,
    ) -> Checkpoint:
        checkpoint = Checkpoint(
            run_id=run.stream_id,
            tenant=run.tenant,
            kind=kind,
            name=name,
            base_model=BASE,
            created_ms=self.now_ms,
            ref=self.services.artifacts.write(run.scope, f"ckpt/{kind.value}/{name}", data),
            artifact_id=f"art-{next(self._numbers)}",
            expires_ms=None if ttl_s is None else self.now_ms + ttl_s * 1000,
            ephemeral=ephemeral,
            idle_s=idle_s,
        )
        self.items.write(self.services.checkpoints.saving(checkpoint, overwrite=overwrite))
        return self.services.checkpoints.find(run.stream_id, kind, name, run.tenant)

    # What is stored

    def partition(self, name: str) -> list[Item]:
        return self.items.query(name, limit=10_000)

    def stored(self, stream: StreamRecord) -> list[str]:
        """Sort keys of all that the stream has."""
        return [item.key.sort for item in self.partition(layout.stream_partition(stream.stream_id))]

    def markers(self) -> list[str]:
        return [item.key.sort for shard in layout.pending_shards() for item in self.partition(shard)]

    def due(self) -> list[Item]:
        """What retention will look at."""
        return [item for shard in layout.due_shards() for item in self.partition(shard)]

    def blob_keys(self) -> set[str]:
        assert isinstance(self.blobs, MemoryBlobs)
        return set(self.blobs.stored)

    def drain(self, queue: str) -> list[dict[str, Any]]:
        """Receive and delete every message that can be received, as a worker without work; their bodies."""
        found: list[dict[str, Any]] = []
        while messages := self.queues.receive(queue, visibility_s=60, max_messages=10):
            for message in messages:
                if message.group is not None:
                    self.services.doorbell.heard(message.group)
                found.append(dict(message.body))
                self.queues.delete(queue, message.receipt)
        return found
