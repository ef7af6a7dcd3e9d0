"""Durable snapshots of a run: what a restore begins from, and what lets old payloads go."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from tensafe.contracts.errors import Gone, IntegrityError
from tensafe.operations import layout
from tensafe.operations.streams import now_ms
from tensafe.operations.unclaimed import Announcement
from tensafe.services import Services
from tensafe.storage.ports import ConditionFailed, JsonValue, Put, Write
from tensafe.vault.artifacts import ArtifactRef
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.hot_run import HotRun, deal_of_snapshot, pack_snapshot, unpack_snapshot
from tensafe_gpu.trainer.state import RunState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sealed snapshot that becomes the run's when `writes` are applied."""

    seq: int
    writes: list[Write]
    blob_key: str
    replaced_blob_key: str | None
    size_bytes: int


class Snapshots:
    """Writes and reads snapshots under the run's own data key."""

    def __init__(self, services: Services, engine: Engine) -> None:
        self._services = services
        self._engine = engine

    def prepare(self, run: HotRun, seq: int) -> Prepared:
        """Seal the state as it is after operation `seq`; durable, but not yet the run's snapshot."""
        if run.state is None:
            raise IntegrityError("the run has no state")
        units, deal = (run.private.units, run.private.deal) if run.private else (set(), None)
        data = pack_snapshot(run.state, units, deal)
        key = layout.stream_item(run.stream.stream_id, "snapshot")
        announce = Announcement(self._services.ports.items, key, now_ms)
        ref = self._services.artifacts.write(run.stream.scope, _part(seq), data, announce=announce)
        old = self._services.ports.items.get(key)
        body: dict[str, JsonValue] = {
            "seq": seq,
            "blob": ref.blob_key,
            "artifact_size_bytes": ref.size_bytes,
            "sha256": ref.sha256,
        }
        writes: list[Write] = [
            Put(key, body, old.version if old else 0, sealed=ref.sealed_key),
            *announce.claiming,
        ]
        replaced = str(old.body["blob"]) if old else None
        if replaced is not None:
            # Deleted as soon as this is durable; the note is for a process that dies before that.
            writes.append(Put(layout.due_blob(now_ms(), replaced), {"blob": replaced}, 0))
        return Prepared(seq, writes, ref.blob_key, replaced, len(data))

    def applied(self, run: HotRun, prepared: Prepared) -> None:
        """After the transaction: drop what the snapshot replaces. What a crash leaves, a later one drops."""
        if prepared.replaced_blob_key is not None:
            self._services.ports.blobs.delete(prepared.replaced_blob_key)
        # From the beginning: a process that died here has left some behind.
        self._services.outcomes.discard_payloads(run.stream, 0, prepared.seq)
        run.snapshot_seq = prepared.seq
        run.last_snapshot_s = time.monotonic()
        log.info(
            "snapshot saved",
            extra={"stream": run.stream.stream_id, "seq": prepared.seq, "size_bytes": prepared.size_bytes},
        )

    def discard(self, prepared: Prepared) -> None:
        """Its transaction lost."""
        self._services.ports.blobs.delete(prepared.blob_key)

    def save(self, run: HotRun) -> None:
        """Make everything up to the last applied operation durable. Raises ConditionFailed if fenced out."""
        if run.state is None or not run.dirty:
            return
        prepared = self.prepare(run, run.next_seq - 1)
        try:
            self._services.ports.items.write([run.lease.check, *prepared.writes])
        except ConditionFailed:
            self.discard(prepared)
            raise
        self.applied(run, prepared)

    def load(self, run: HotRun) -> None:
        """Bring `run` to its last snapshot, or to the empty beginning of its log."""
        run.last_snapshot_s = time.monotonic()
        item = self._services.ports.items.get(layout.stream_item(run.stream.stream_id, "snapshot"))
        if item is None:
            run.next_seq, run.snapshot_seq, run.state = 0, -1, None
            return
        seq = int(str(item.body["seq"]))
        ref = ArtifactRef(
            str(item.body["blob"]),
            item.sealed,
            int(str(item.body["artifact_size_bytes"])),
            str(item.body["sha256"]),
        )
        try:
            data = self._services.artifacts.read(run.stream.scope, _part(seq), ref)
        except Gone:
            # The holder of the run replaced it between our two reads; the new one names another blob.
            again = self._services.ports.items.get(item.key)
            if again is not None and again.version != item.version:
                return self.load(run)
            raise
        numbers, units = unpack_snapshot(data)
        run.state = RunState.load(numbers, self._engine.base)
        if run.private is not None:
            run.private.units, run.private.deal = units, deal_of_snapshot(data)
        run.next_seq, run.snapshot_seq = seq + 1, seq
        return None


def _part(seq: int) -> str:
    return f"snapshot/{seq}"
