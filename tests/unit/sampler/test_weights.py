"""From a session to its adapter: weights in use stay, unused ones go, and a session without them says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tensafe.contracts.errors import Gone
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.local import publishing
from tensafe.operations.checkpoints import UNUSED_S, CheckpointKind
from tensafe.operations.placements import Placement
from tensafe.operations.records import StreamKind, StreamRecord
from tensafe.packages.bundle import pack_files
from tensafe.storage.ports import JsonValue
from tensafe_gpu.sampler import weights
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tensafe_gpu.sampler.weights import CHECK_S, Weights
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
    reader = Weights(memory.services)
    for _ in range(50):
        memory.later(3600)
        memory.services.retention.purge()
        adapter = reader.of(used)
        assert adapter is not None
        assert adapter.files == FILES
    assert len(memory.blob_keys()) == 1
    with pytest.raises(Gone, match="save them again"):
        reader.of(unused)
    memory.later(UNUSED_S)
    with pytest.raises(Gone, match="save them again"):
        reader.of(used)
    memory.services.retention.purge()
    assert memory.blob_keys() == set()


def _erase(world: World, run: StreamRecord) -> None:
    world.services.streams.erase(run.stream_id, run.tenant)


def _delete(world: World, run: StreamRecord) -> None:
    found = world.services.checkpoints.peek(run.stream_id, CheckpointKind.SAMPLER, "session-weights-0")
    assert found is not None
    world.services.checkpoints.delete(found)


@pytest.mark.parametrize("end", [_erase, _delete])
def test_decrypted_weights_that_have_gone_leave_memory_in_time(
    memory: World, end: Callable[[World, StreamRecord], None]
) -> None:
    run, other = memory.run(), memory.run("s-1:train:1")
    reader = Weights(memory.services, clock=memory.clock_s)
    adapters = [reader.of(session(memory, run)), reader.of(session(memory, other, "session-weights-1"))]
    assert [one.version for one in adapters if one] == list(reader._cache)
    end(memory, run)
    memory.later(CHECK_S - 1)
    reader.forget_stale()
    assert len(reader._cache) == 2  # asked too soon
    memory.later(1)
    reader.forget_stale()
    assert [adapter.name for adapter in reader._cache.values()] == [other.stream_id]


def preferred(world: World, run: StreamRecord, policy: ExecutionPolicy) -> StreamRecord:
    """A session of a private adapter whose weights are kept in the clear too."""
    kept = world.services.keeping.writing(run, "mine", "ab" * 32, pack_files(FILES))
    placement = Placement(
        run.stream_id, "mine", run.tenant, BASE, policy, "unix:/h", "art-1", 1, "sampler", 0, 1, "cd" * 32
    )
    world.services.placements.add(placement, kept)
    spec: dict[str, JsonValue] = {"model_path": placement.path}
    record, writes = world.services.streams.creation(
        f"{run.stream_id}:sample:9", run.tenant, StreamKind.SAMPLER, BASE, spec=spec
    )
    world.items.write(writes)
    return record


def test_an_adapter_that_was_moved_is_looked_for_at_its_new_address_by_the_sessions_that_have_it(
    memory: World,
) -> None:
    """Under another identity, so that it is opened anew, with the digest that it has to have."""
    run, reader = memory.run(), Weights(memory.services)
    asked = preferred(memory, run, ExecutionPolicy.HE_REQUIRED)
    before = reader.of(asked)
    publishing.move(memory.services, memory.services.placements.find(run.stream_id, "mine"), "unix:/new")
    after = reader.of(asked)
    assert isinstance(before, PrivateAdapter)
    assert isinstance(after, PrivateAdapter)
    assert (before.holder["address"], after.holder["address"]) == ("unix:/h", "unix:/new")
    assert before.identity != after.identity
    assert after.holder | {"address": ""} == before.holder | {"address": ""}
    assert after.digest == before.digest == after.holder["digest"] == "cd" * 32
    assert weights.still_there(memory.services, after.identity)


def test_weights_in_the_clear_are_for_he_preferred_alone_and_go_with_what_they_are_kept_for(
    memory: World,
) -> None:
    run, other = memory.run(), memory.run("s-1:train:1")
    reader = Weights(memory.services, clock=memory.clock_s)
    required = reader.of(preferred(memory, other, ExecutionPolicy.HE_REQUIRED))
    memory.services.streams.erase(other.stream_id, other.tenant)
    asked = preferred(memory, run, ExecutionPolicy.HE_PREFERRED)
    found = reader.of(asked)
    assert isinstance(required, PrivateAdapter)
    assert isinstance(found, PrivateAdapter)
    assert (required.plain, required.digest) == (None, "cd" * 32)
    assert found.plain is not None
    assert (found.plain.files, found.plain_digest, found.digest) == (FILES, "ab" * 32, "cd" * 32)
    assert reader.of(asked) == found
    assert weights.still_there(memory.services, found.plain.identity)
    blobs = memory.blob_keys()
    assert len(blobs) == 1
    memory.later(CHECK_S)
    reader.forget_stale()
    assert len(reader._cache) == 1
    memory.services.keeping.delete(run.stream_id, "mine")
    memory.services.keeping.delete(run.stream_id, "mine")
    assert memory.blob_keys() == set()
    assert not weights.still_there(memory.services, found.plain.identity)
    again = reader.of(asked)
    assert isinstance(again, PrivateAdapter)
    assert again.plain is None
    memory.later(CHECK_S)
    reader.forget_stale()
    assert len(reader._cache) == 0


def test_an_erased_run_takes_weights_in_the_clear_along(memory: World) -> None:
    run = memory.run()
    reader = Weights(memory.services, clock=memory.clock_s)
    asked = preferred(memory, run, ExecutionPolicy.HE_PREFERRED)
    found = reader.of(asked)
    assert isinstance(found, PrivateAdapter)
    assert found.plain is not None
    _erase(memory, run)
    memory.services.retention.purge()
    assert memory.blob_keys() == set()
    again = reader.of(asked)
    assert isinstance(again, PrivateAdapter)
    assert again.plain is None
    assert not weights.still_there(memory.services, found.plain.identity)


def test_the_engine_forgets_them_too(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = memory.run(), memory.run("s-1:train:1")
    reader = Weights(memory.services)
    read = [reader.of(session(memory, run)), reader.of(session(memory, other, "session-weights-1"))]
    loaded = [adapter.identity for adapter in read if adapter]
    _erase(memory, run)
    monkeypatch.setattr(weights, "CHECK_S", 0.001)

    class Engine:
        failed = False

        def resident(self) -> list[str]:
            return list(loaded)

        async def forget(self, identity: str) -> None:
            if not self.failed:
                self.failed = True
                raise ValueError("busy")
            loaded.remove(identity)

    async def scenario() -> None:
        task = asyncio.create_task(weights.forget_gone(memory.services, Engine()))
        async with asyncio.timeout(10):
            while len(loaded) > 1:
                await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(scenario())
    assert [identity.partition("@")[0] for identity in loaded] == [other.stream_id]
