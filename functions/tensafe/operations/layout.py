"""Where the operations room keeps its items: every partition and sort key is built here.

    stream/<id>                 meta, key, fence, lease, claims, snapshot, completions
      op/<seq>                  state of one operation; a sample's goes with its result
      pay/<seq>                 its sealed payload, until a snapshot passes it
      res/<seq>                 its sealed result
      part/<seq>/<try>/<n>      what it has produced so far, for whoever watches; expires
      done/<clone>/<n>          the n-th completion of a sampling session (or clone of it)
      ckpt/<kind>/<name>        a saved artifact
      kept/<name>               a private adapter's weights in the clear, where they are kept
      loaded/<seq>              what a load brought into the run's weights
      dealt-loss                the one loss of a dealt run
      deal/<seq>                the deal that an operation of a dealt run worked on
      sampler/<id>              a sampling session with weights of the run
      set-aside/<letter>        a dead letter of the stream; sorts behind op/
    tenant/<tenant>/runs        listing: newest last
    tenant/<tenant>/checkpoints listing
    session/<id>                meta
      member/<id>               a run or sampling session that it created
    pending/<shard>             one marker per unfinished operation, oldest first: what the sweeper reads
    worker/<owner>              the runs that one trainer process holds
    idem/<tenant>               idempotency keys
    dead                        dead letters, oldest first
    due/<shard>                 what is to be deleted and when, soonest first
    artifact/<id>               where a saved artifact is registered
    private/<run>               weights of the run that an adapter holder has, by name
    tenant/<tenant>/private     listing of those
    private-adapter/<adapter>   the same by what the adapter holder calls them
    private-adapters            all of them: operators list tenants that have no API key, too

No partition is written by every request (pending is sharded by stream, due by what goes), and none is
ever scanned.
"""

from __future__ import annotations

import hashlib
from typing import Final

from tensafe.storage.ports import Key

PENDING_SHARDS: Final = 16
DUE_SHARDS: Final = 16
UNSEEN_MS: Final = 30 * 86_400_000
"""How long a session that nobody uses is kept."""
DEAD: Final = "dead"
SET_ASIDE: Final = "set-aside/"
LOADED: Final = "loaded/"
SEQ_MAX: Final = 9 * 10**18 - 1
"""Below 2**63; a clone of a sampling client numbers its requests from a multiple of 10**9."""


def after(sort: str) -> str:
    """The smallest bound past `sort`: '!' is below every character that a sort key may hold."""
    return sort + "!"


def stream_partition(stream_id: str) -> str:
    """Partition of all that belongs to a run or sampling session."""
    return f"stream/{stream_id}"


def stream_item(stream_id: str, sort: str) -> Key:
    """One of the stream's singleton items."""
    return Key(stream_partition(stream_id), sort)


def op_sort(seq: int) -> str:
    """Sort key of an operation; ordered as its number."""
    return f"op/{seq:019d}"


def op_item(stream_id: str, seq: int) -> Key:
    """State of an operation."""
    return Key(stream_partition(stream_id), op_sort(seq))


def payload_item(stream_id: str, seq: int) -> Key:
    """Sealed payload of an operation."""
    return Key(stream_partition(stream_id), f"pay/{seq:019d}")


def result_item(stream_id: str, seq: int) -> Key:
    """Sealed result of an operation."""
    return Key(stream_partition(stream_id), f"res/{seq:019d}")


def part_item(stream_id: str, seq: int, attempt: int, number: int) -> Key:
    """A sealed part of what one try of an operation has produced so far."""
    return Key(stream_partition(stream_id), f"part/{seq:019d}/{attempt:06d}/{number:06d}")


def loaded_item(run_id: str, seq: int) -> Key:
    """What the weights began from that operation `seq` of the run has loaded."""
    return Key(stream_partition(run_id), f"{LOADED}{seq:019d}")


def dealt_operation(stream_id: str, seq: int) -> Key:
    """Which deal a completed operation of a dealt run worked on."""
    return Key(stream_partition(stream_id), f"deal/{seq:019d}")


def done_sort(clone: int, cursor: int) -> str:
    """Sort key of a completion."""
    return f"done/{clone:010d}/{cursor:019d}"


def pending_shards() -> list[str]:
    """Every partition that the sweeper reads."""
    return [f"pending/{shard:02d}" for shard in range(PENDING_SHARDS)]


def pending_item(stream_id: str, seq: int, created_ms: int) -> Key:
    """Marker of an unfinished operation."""
    shard = _shard(stream_id, PENDING_SHARDS)
    return Key(f"pending/{shard:02d}", f"{created_ms:015d}/{stream_id}/{seq}")


def _shard(name: str, shards: int) -> int:
    return hashlib.sha256(name.encode()).digest()[0] % shards


def sampler_of_run(run_id: str, sampler_id: str) -> Key:
    """Entry of a sampling session in the run whose weights it has."""
    return Key(stream_partition(run_id), f"sampler/{sampler_id}")


def session_member(session_id: str, stream_id: str) -> Key:
    """Entry of a run or sampling session in the client session that created it."""
    return Key(f"session/{session_id}", f"member/{stream_id}")


def run_listing(tenant: str, created_ms: int, run_id: str) -> Key:
    """Entry of a run in its tenant's listing."""
    return Key(f"tenant/{tenant}/runs", f"{created_ms:015d}/{run_id}")


def worker_partition(owner: str) -> str:
    """Partition of the leases that one trainer process holds."""
    return f"worker/{owner}"


def idempotency_item(tenant: str, key: str) -> Key:
    """Record of an idempotency key; the key itself is only stored as a digest."""
    return Key(f"idem/{tenant}", hashlib.sha256(key.encode()).hexdigest())


def dead_item(dead_ms: int, stream_id: str, seq: int) -> Key:
    """A dead letter."""
    return Key(DEAD, f"{dead_ms:015d}/{stream_id}/{seq}")


def dead_of_stream(stream_id: str, letter: Key) -> Key:
    """Entry of a dead letter in the stream that it is about; written and deleted with the letter."""
    return Key(stream_partition(stream_id), f"{SET_ASIDE}{letter.sort}")


def due_shards() -> list[str]:
    """Every partition that retention reads."""
    return [f"due/{shard:02d}" for shard in range(DUE_SHARDS)]


def _due(due_ms: int, what: str, name: str) -> Key:
    return Key(f"due/{_shard(name, DUE_SHARDS):02d}", f"{due_ms:015d}/{what}/{name}")


def due_blob(due_ms: int, blob_key: str) -> Key:
    """Note that nothing refers to the blob from `due_ms` on."""
    return _due(due_ms, "blob", blob_key)


def due_artifact(due_ms: int, artifact_id: str) -> Key:
    """Note that a saved artifact expires at `due_ms`."""
    return _due(due_ms, "artifact", artifact_id)


def due_unclaimed(due_ms: int, blob_key: str) -> Key:
    """Note that the blob is to be deleted unless the item that was to name it does."""
    return _due(due_ms, "unclaimed", blob_key)


def due_erasure(due_ms: int, stream_id: str) -> Key:
    """Note that what an erased stream has left is to be deleted."""
    return _due(due_ms, "erase", stream_id)


def artifact_item(artifact_id: str) -> Key:
    """Pointer from an artifact's id to its checkpoint."""
    return Key(f"artifact/{artifact_id}", "meta")


def placement_item(run_id: str, name: str) -> Key:
    """A private adapter under the path of the weights that it was."""
    return Key(f"private/{run_id}", name)


def kept_weights(run_id: str, name: str) -> Key:
    """The weights of a private adapter that are kept here in the clear."""
    return stream_item(run_id, f"kept/{name}")


def placements_of(tenant: str) -> str:
    """Partition that lists a tenant's private adapters."""
    return f"tenant/{tenant}/private"


def placement_listing(tenant: str, run_id: str, name: str) -> Key:
    """Entry of a private adapter in its tenant's listing."""
    return Key(placements_of(tenant), f"{run_id}/{name}")


PLACED: Final = "private-adapters"
"""Partition that lists the private adapters of all tenants."""


def placed_listing(run_id: str, name: str) -> Key:
    """Entry of a private adapter among all."""
    return Key(PLACED, f"{run_id}/{name}")


def placed_versions(adapter: str) -> str:
    """Partition of what an adapter holder has under this name."""
    return f"private-adapter/{adapter}"


def placed_adapter(adapter: str, version: str, run_id: str, name: str) -> Key:
    """Entry of a private adapter under the name and version that its holder knows."""
    return Key(placed_versions(adapter), f"{version}/{run_id}/{name}")


def due_session(due_ms: int, session_id: str) -> Key:
    """Note that the client session ends unless its client has been seen."""
    return _due(due_ms, "session", session_id)


def due_sampler(due_ms: int, sampler_id: str) -> Key:
    """Note that a sampling session without a client session ends unless it is used."""
    return _due(due_ms, "sampler", sampler_id)


def due_until(now_ms: int) -> str:
    """The last sort key of what is due at `now_ms`."""
    return f"{now_ms:015d}/~"


def submitted_topic(queue: str) -> str:
    """Bell topic that wakes the workers of a queue."""
    return f"queue/{queue}"


def finished_topic(stream_id: str) -> str:
    """Bell topic that wakes those who wait for results of a stream."""
    return f"done/{stream_id}"
