"""Erasing: the wrapped key goes first, and with it everything; a crash anywhere is finished later."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tensafe.contracts.errors import Gone, NotFound
from tensafe.operations import layout
from tensafe.operations.outcomes import RESULT_TTL_S
from tensafe.operations.records import OpState, Result, StreamState
from tensafe.storage.ports import ConditionFailed, Items, Put
from tests.unit.operations.world import TRAIN, World

LARGE = b"x" * 100_000
KEPT = {"meta", "fence", "lease", "claims"}


def _full_run(world: World, run_id: str = "s:train:0"):
    """A run with everything that a run can have."""
    run = world.run(run_id)
    world.submit(run, 1, LARGE)
    world.complete(run, world.submit(run, 2, b"small"), LARGE)
    world.complete(run, world.submit(run, 3, LARGE), b"small")
    world.append(run, b"payload", key="k")
    world.checkpoint(run, "final")
    world.checkpoint(run, "soon", ttl_s=600)
    world.checkpoint(run, "hidden", ephemeral=True)
    scope = run.scope
    ref = world.services.artifacts.write(scope, "snapshot/3", b"state")
    body = {"seq": 0, "blob": ref.blob_key}
    world.items.write([Put(layout.stream_item(run.stream_id, "snapshot"), body, 0, sealed=ref.sealed_key)])
    sealed = world.services.vault.seal(scope, "noise", b"n" * 32)
    world.items.write([Put(layout.stream_item(run.stream_id, "noise"), {}, 0, sealed=sealed)])
    world.claim(run)
    return world.stream(run_id)


def _traces(world: World, stream_id: str) -> list[str]:
    """Everything that still names the run, apart from what stays; notes of unclaimed blobs, for a day."""
    found = [
        f"{item.key.partition} {item.key.sort}"
        for partition in (
            "tenant/acme/runs",
            "tenant/acme/checkpoints",
            *layout.due_shards(),
            layout.DEAD,
            *layout.pending_shards(),
        )
        for item in world.partition(partition)
        if stream_id in f"{item.key} {item.body}" and "/unclaimed/" not in item.key.sort
    ]
    found += [sort for sort in world.stored(world.stream(stream_id)) if sort not in KEPT]
    return found


def test_nothing_of_an_erased_run_can_be_opened_or_found(either: World) -> None:
    run = _full_run(either)
    artifact_id = either.services.checkpoints.of_run(run.stream_id)[0].artifact_id
    done, checkpoint = either.op(run, 2), either.services.checkpoints.of_run(run.stream_id)[0]
    either.services.streams.erase(run.stream_id, "acme")
    other = either.open()
    assert either.items.get(run.scope.key_item) is None
    assert either.blob_keys() == set()
    assert _traces(either, run.stream_id) == []
    assert either.items.get(layout.artifact_item(artifact_id)) is None
    for services in (either.services, other):
        for read in (
            lambda s: s.outcomes.payload(run, 1),
            lambda s: s.outcomes.result(run, done),
            lambda s: s.checkpoints.read(run, checkpoint),
            lambda s: s.vault.seal(run.scope, "x", b"new"),
            lambda s: s.streams.get(run.stream_id, "acme"),
        ):
            with pytest.raises(Gone):
                read(services)
    with pytest.raises(NotFound):
        other.checkpoints.by_artifact(artifact_id, "acme")
    assert other.streams.list_runs("acme") == []
    assert other.checkpoints.of_tenant("acme") == []


def test_notes_of_its_blobs_go_when_their_time_comes(memory: World) -> None:
    run = _full_run(memory)
    memory.services.streams.erase(run.stream_id, "acme")
    memory.later(RESULT_TTL_S + 1)
    memory.services.retention.purge()
    assert memory.due() == []


def test_sealed_bytes_kept_by_somebody_do_not_open_after_erasure(memory: World) -> None:
    run = _full_run(memory)
    items = memory.partition(layout.stream_partition(run.stream_id))
    blobs = {key: memory.blobs.get(key) for key in memory.blob_keys()}
    memory.services.streams.erase(run.stream_id, "acme")
    # An old backup of all but the key: every item and blob is back.
    memory.items.write(
        [
            Put(item.key, item.body, 0, sealed=item.sealed)
            for item in items
            if item.key.sort not in {*KEPT, "key"}
        ]
    )
    for key, data in blobs.items():
        memory.blobs.put(key, data)
    other = memory.open()
    with pytest.raises(Gone):
        other.outcomes.payload(run, 1)
    with pytest.raises(Gone):
        other.checkpoints.read(run, other.checkpoints.of_run(run.stream_id)[0])


def test_a_live_trainer_commits_nothing_after_the_erasure(either: World) -> None:
    run = either.run()
    operation = either.submit(run, 1)
    lease = either.claim(run, "trainer-a")
    trainer = either.open()
    trainer.vault.seal(run.scope, "warm the cache", b"")
    running = trainer.outcomes.start(operation, [lease.check])
    either.services.streams.erase(run.stream_id, "acme")
    with pytest.raises(ConditionFailed):
        trainer.outcomes.complete(run, running, Result("text/plain", LARGE), [lease.check])
    with pytest.raises(ConditionFailed):
        either.items.write([lease.check])
    assert trainer.leases.claim(run.stream_id, "trainer-b") is None
    assert either.blob_keys() == set()
    assert _traces(either, run.stream_id) == []


def test_erasing_again_does_nothing(memory: World) -> None:
    run = _full_run(memory)
    for _ in range(3):
        memory.services.streams.erase(run.stream_id, "acme")
    assert memory.stream(run.stream_id).state is StreamState.ERASED


def test_only_its_tenant_erases_a_run(memory: World) -> None:
    run = _full_run(memory)
    for stream_id, tenant in ((run.stream_id, "rival"), ("s:train:9", "acme")):
        with pytest.raises(NotFound):
            memory.services.streams.erase(stream_id, tenant)
    assert memory.services.outcomes.payload(run, 1) == LARGE


def test_other_runs_keep_everything(memory: World) -> None:
    run, other = memory.run("s:train:0"), _full_run(memory, "s:train:1")
    memory.services.dead_letters.bury(run, memory.submit(run, 1), "it died")
    before = (memory.stored(other), memory.blob_keys())
    memory.services.streams.erase(run.stream_id, "acme")
    assert (memory.stored(other), memory.blob_keys()) == before
    assert memory.services.dead_letters.list() == []


class _Watching:
    """Passes everything on and remembers which partitions were queried."""

    def __init__(self, inner: Items) -> None:
        self._inner = inner
        self.queried: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def query(self, partition: str, **bounds):
        self.queried.append(partition)
        return self._inner.query(partition, **bounds)


def test_an_erasure_takes_its_dead_letters_and_reads_nobody_else_s(either: World) -> None:
    run, sampler, other = either.run("s:train:0"), either.sampler("s:sample:0"), either.sampler("s:sample:1")
    letters = either.services.dead_letters
    letters.bury(run, either.submit(run, 1), "it died")
    for stream, seq in ((sampler, 1), (sampler, 2), (other, 1)):
        letters.bury(stream, either.submit(stream, seq), "it died")
    watching = _Watching(either.items)
    erasing = either.open(items=watching).streams
    erasing.erase(run.stream_id, "acme")
    erasing.erase(sampler.stream_id, "acme")
    assert layout.DEAD not in watching.queried
    assert set(watching.queried) == {layout.stream_partition(one.stream_id) for one in (run, sampler)}
    assert [letter.stream_id for letter in letters.list()] == [other.stream_id]
    assert _traces(either, run.stream_id) == []
    letters.redrive(letters.list()[0].letter_id)
    assert [sort for sort in either.stored(other) if sort.startswith(layout.SET_ASIDE)] == []


def test_a_sampling_session_is_erased_the_same_way(memory: World) -> None:
    sampler = memory.sampler()
    memory.complete(sampler, memory.submit(sampler, 1, LARGE), LARGE)
    memory.services.streams.erase(sampler.stream_id, "acme")
    assert memory.blob_keys() == set()
    assert set(memory.stored(sampler)) <= KEPT


def test_an_erased_id_is_not_used_again(memory: World) -> None:
    run = memory.run("s:train:0")
    memory.services.streams.erase(run.stream_id, "acme")
    with pytest.raises(Gone):
        memory.run("s:train:0")


def test_an_idempotency_record_that_stays_says_nothing_and_expires(memory: World) -> None:
    run = memory.run()
    memory.append(run, b"a guessable payload", key="k")
    memory.services.streams.erase(run.stream_id, "acme")
    (record,) = memory.partition("idem/acme")
    # A digest under the deleted key: knowing the payload confirms nothing.
    other = memory.run("s:train:1")
    scope = other.scope
    assert record.body["fingerprint"] != memory.services.vault.fingerprint(
        scope, "noop", b"a guessable payload"
    )
    memory.later(86_401)
    assert memory.partition("idem/acme") == []


class _Dying:
    """A port whose k-th mutating call never returns: before or after it had its effect."""

    def __init__(self, inner: object, spent: list[int], after: bool) -> None:
        self._inner = inner
        self._spent = spent
        self._after = after

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._inner, name)
        if name not in ("write", "delete", "put"):
            return method

        def call(*args: object, **kwargs: object) -> object:
            self._spent[0] -= 1
            if self._spent[0] == 0:
                if self._after:
                    method(*args, **kwargs)
                raise SystemError("killed")
            return method(*args, **kwargs)

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("way", ["again", "retention"])
def test_an_erasure_killed_at_any_call_is_finished(after: bool, way: str) -> None:
    calls = 1
    while True:
        world = World()
        run = _full_run(world)
        spent = [calls]
        dying = world.open(items=_Dying(world.items, spent, after), blobs=_Dying(world.blobs, spent, after))
        try:
            dying.streams.erase(run.stream_id, "acme")
            break
        except SystemError:
            pass
        begun = world.stream(run.stream_id).state is StreamState.ERASED
        assert begun == (calls > 1 or after)
        assert (world.items.get(run.scope.key_item) is None) == begun  # the key goes first
        if not begun:
            assert world.services.outcomes.payload(run, 1) == LARGE
            world.services.streams.erase(run.stream_id, "acme")
        elif way == "again":
            world.services.streams.erase(run.stream_id, "acme")
        else:
            world.services.retention.purge()
        assert world.blob_keys() == set()
        assert _traces(world, run.stream_id) == []
        calls += 1
    assert calls > 8


def test_a_sampling_session_s_erasure_killed_at_any_call_leaves_nothing_in_the_end() -> None:
    calls = 0
    while True:
        calls += 1
        world = World()
        sampler = world.sampler()
        world.complete(sampler, world.submit(sampler, 1, LARGE), LARGE)
        spent = [calls]
        dying = world.open(items=_Dying(world.items, spent, True), blobs=_Dying(world.blobs, spent, True))
        try:
            dying.streams.erase(sampler.stream_id, "acme")
        except SystemError:
            world.services.retention.purge()
        assert world.blob_keys() == set()
        assert world.stream(sampler.stream_id).state is StreamState.ERASED
        world.later(7 * 86_400 + 1)
        assert world.stored(sampler) == []
        if spent[0] > 0:
            break
    assert calls > 4


def test_retention_leaves_a_run_in_use_alone(memory: World) -> None:
    run = _full_run(memory)
    memory.items.write([Put(layout.due_erasure(memory.now_ms, run.stream_id), {"erase": run.stream_id}, 0)])
    memory.services.retention.purge()
    assert memory.services.outcomes.payload(run, 1) == LARGE
    assert memory.op(run, 1).state is OpState.PENDING
    memory.drain(TRAIN)
