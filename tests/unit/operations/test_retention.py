"""What has had its time goes: expired checkpoints, blobs without a record; nothing else does."""

from __future__ import annotations

import pytest

from tensafe.contracts.errors import Conflict, NotFound
from tensafe.operations import layout
from tensafe.operations.checkpoints import Checkpoint, CheckpointKind, Checkpoints
from tensafe.operations.doorbell import Doorbell, queue_specs
from tensafe.operations.leases import Leases
from tensafe.operations.outcomes import RESULT_TTL_S, Outcomes
from tensafe.operations.records import OpKind, Result, StreamKind
from tensafe.operations.retention import Retention
from tensafe.operations.streams import Stores, Streams
from tensafe.operations.submissions import Submission, Submissions
from tensafe.storage.ports import BlobMissing, Item
from tensafe.vault.artifacts import Artifacts
from tensafe.vault.vault import Vault
from tests.fakes import MemoryBell, MemoryBlobs, MemoryItems, MemoryKeyRing, MemoryQueues

BASE = "acme/tiny"


class World:
    """Rooms over memory with a clock that the test moves."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000
        self.items = MemoryItems(clock=lambda: self.now_ms / 1000)
        self.blobs = MemoryBlobs()
        vault = Vault(self.items, self.blobs, MemoryKeyRing())
        self.artifacts = Artifacts(vault, self.blobs)
        stores = Stores(self.items, self.blobs, vault)
        streams = Streams(stores, clock_ms=self.clock_ms)
        self.checkpoints = Checkpoints(stores, self.artifacts, clock_ms=self.clock_ms)
        self.retention = Retention(stores, self.checkpoints, clock_ms=self.clock_ms)
        leases = Leases(self.items, lease_s=30, clock_ms=self.clock_ms)
        doorbell = Doorbell(MemoryQueues(queue_specs([BASE])), MemoryBell(), leases)
        self.outcomes = Outcomes(stores, doorbell, clock_ms=self.clock_ms)
        submissions = Submissions(stores, doorbell, clock_ms=self.clock_ms)
        self.run, creation = streams.creation("s:train:0", "acme", StreamKind.RUN, BASE)
        self.operation = submissions.create(self.run, creation, Submission(0, OpKind.NOOP, b"{}"))

    def clock_ms(self) -> int:
        return self.now_ms

    def save(self, name: str, *, ttl_s: int | None = None, overwrite: bool = False) -> Checkpoint:
        part = f"ckpt/weights/{name}"
        checkpoint = Checkpoint(
            run_id=self.run.stream_id,
            tenant="acme",
            kind=CheckpointKind.TRAINING,
            name=name,
            base_model=BASE,
            created_ms=self.now_ms,
            ref=self.artifacts.write(self.run.scope, part, b"weights"),
            artifact_id=f"art-{name}-{self.now_ms}",
            expires_ms=None if ttl_s is None else self.now_ms + ttl_s * 1000,
        )
        self.items.write(self.checkpoints.saving(checkpoint, overwrite=overwrite))
        return self.find(name)

    def find(self, name: str) -> Checkpoint:
        return self.checkpoints.find(self.run.stream_id, CheckpointKind.TRAINING, name, "acme")

    def due(self) -> int:
        return len(self.notes())

    def notes(self) -> list[Item]:
        return [one for shard in layout.due_shards() for one in self.items.query(shard, limit=1000)]


@pytest.fixture
def world() -> World:
    return World()


def test_an_expired_checkpoint_goes_with_its_artifact(world: World) -> None:
    gone, kept, later = world.save("gone", ttl_s=60), world.save("kept"), world.save("later", ttl_s=3600)
    assert world.retention.purge() == 0
    world.now_ms += 60_000
    assert world.retention.purge() >= 1
    assert world.blobs.head(gone.ref.blob_key) is None
    with pytest.raises(NotFound):
        world.checkpoints.by_artifact(gone.artifact_id, "acme")
    assert [one.name for one in world.checkpoints.of_tenant("acme")] == ["later", "kept"]
    assert world.artifacts.read(world.run.scope, kept.part, kept.ref) == b"weights"
    assert world.blobs.head(later.ref.blob_key) is not None
    world.retention.purge()
    assert world.due() == 1  # the note of the later one


def test_a_longer_life_is_kept_to(world: World) -> None:
    checkpoint = world.save("a", ttl_s=60)
    world.checkpoints.set_ttl(checkpoint, 600)
    world.now_ms += 60_000
    world.retention.purge()
    world.checkpoints.set_ttl(world.find("a"), None)
    world.now_ms += 6_000_000
    world.retention.purge()
    assert world.find("a").expires_ms is None
    assert world.due() == 0


def test_a_shorter_life_too(world: World) -> None:
    world.checkpoints.set_ttl(world.save("a"), 5)
    world.checkpoints.set_ttl(world.find("a"), 5)
    world.now_ms += 5_000
    world.retention.purge()
    with pytest.raises(NotFound):
        world.find("a")


def test_overwriting_drops_the_old_ciphertext_and_keeps_the_new(world: World) -> None:
    old = world.save("a", ttl_s=60)
    world.now_ms += 1
    new = world.save("a", overwrite=True)
    world.now_ms += 60_000
    world.retention.purge()
    assert world.blobs.head(old.ref.blob_key) is None
    assert world.find("a").ref == new.ref
    assert world.artifacts.read(world.run.scope, new.part, new.ref) == b"weights"
    assert [one.artifact_id for one in world.checkpoints.of_tenant("acme")] == [new.artifact_id]


def test_a_checkpoint_saved_anew_is_not_deleted_by_who_read_the_old_one(world: World) -> None:
    old = world.save("a")
    world.now_ms += 1
    new = world.save("a", overwrite=True)
    world.now_ms += 1
    with pytest.raises(Conflict):
        world.checkpoints.delete(old)
    assert world.find("a").ref == new.ref


def test_deleting_leaves_no_note_behind_for_long(world: World) -> None:
    checkpoint = world.save("a", ttl_s=60)
    world.checkpoints.delete(checkpoint)
    assert world.blobs.head(checkpoint.ref.blob_key) is None
    world.retention.purge()
    assert world.due() == 0


def test_the_blob_of_a_large_result_goes_when_the_result_expires(world: World) -> None:
    running = world.outcomes.start(world.operation, [])
    world.outcomes.complete(world.run, running, Result("application/json", b"x" * 100_000))
    done = world.outcomes.get(world.run, 0)
    (blob_key,) = {str(item.body["blob"]) for item in world.notes()}
    world.now_ms += (RESULT_TTL_S - 2) * 1000
    world.retention.purge()
    assert world.outcomes.result(world.run, done).data == b"x" * 100_000
    world.now_ms += 4_000
    world.retention.purge()
    with pytest.raises(BlobMissing):
        world.blobs.get(blob_key)
    assert world.due() == 0


def test_what_is_due_is_settled_page_by_page(world: World) -> None:
    for number in range(230):
        world.now_ms += 1
        world.save(f"n{number}", ttl_s=1)
    world.now_ms += 2_000
    assert world.retention.purge() >= 230
    world.retention.purge()
    assert world.due() == 0
    assert world.checkpoints.of_tenant("acme") == []
    assert [key for key in world.blobs.stored if key.startswith("artifacts/")] == []


def test_no_one_partition_takes_every_note(world: World) -> None:
    for number in range(200):
        world.save(f"n{number}", ttl_s=60)
    counts = [len(world.items.query(shard)) for shard in layout.due_shards()]
    assert sum(counts) == 200
    assert max(counts) <= 40


def test_a_conflict_is_left_for_the_next_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.save("a", ttl_s=1)
    world.now_ms += 1_000

    def conflict(_: str) -> None:
        raise Conflict("the checkpoint is changing")

    with monkeypatch.context() as patch:
        patch.setattr(world.checkpoints, "delete_expired", conflict)
        assert world.retention.purge() == 0
    assert world.due() == 1
    assert world.retention.purge() >= 1
