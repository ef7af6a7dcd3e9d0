"""From a session to its adapter: weights in use stay, unused ones go, and a session without them says so."""

from __future__ import annotations

import pytest

from tensafe.contracts.errors import Gone
from tensafe.operations.checkpoints import UNUSED_S, CheckpointKind
from tensafe.operations.records import StreamKind, StreamRecord
from tensafe.packages.bundle import pack_files
from tensafe_gpu.sampler.weights import Weights
from tests.unit.operations.world import BASE, World

FILES = {"adapter_config.json": b"{}"}


@pytest.fixture
def memory() -> World:
    return World()


def session(world: World, run: StreamRecord, name: str = "session-weights-0") -> StreamRecord:
    """A sampling session with unlisted weights of the run."""
    saved = world.checkpoint(
        run,
        name,
        data=pack_files(FILES),
        ttl_s=UNUSED_S,
        idle_s=UNUSED_S,
        ephemeral=True,
        kind=CheckpointKind.SAMPLER,
    )
    record, writes = world.services.streams.creation(
        f"s-1:sample:{name.rsplit('-', 1)[1]}",
        run.tenant,
        StreamKind.SAMPLER,
        BASE,
        spec={"model_path": saved.path},
    )
    world.items.write(writes)
    return record


def test_weights_outlive_their_last_use_by_a_day(memory: World) -> None:
    run = memory.run()
    used, unused = session(memory, run), session(memory, run, "session-weights-1")
    weights = Weights(memory.services)
    for _ in range(50):
        memory.later(3600)
        memory.services.retention.purge()
        adapter = weights.of(used)
        assert adapter is not None
        assert adapter.files == FILES
    assert len(memory.blob_keys()) == 1
    with pytest.raises(Gone, match="save them again"):
        weights.of(unused)
    memory.later(UNUSED_S)
    with pytest.raises(Gone, match="save them again"):
        weights.of(used)
    memory.services.retention.purge()
    assert memory.blob_keys() == set()
