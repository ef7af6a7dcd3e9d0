"""Transactions of workers, sweeper, operator and retention: what becomes of operations and leases."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from tensafe.contracts.errors import InvalidRequest, NotFound
from tensafe.operations import completions, layout
from tensafe.operations.checkpoints import CheckpointKind
from tensafe.operations.records import OpKind, OpState, Result, StreamKind, StreamState
from tensafe.operations.sessions import Session
from tensafe.services import Services
from tensafe.storage.ports import ConditionFailed, Put
from tests.contract.outages.world import LARGE, RUN, SAMPLER, Act, TableWorld, the_run
from tests.unit.operations.world import BASE, LEASE_S, TENANT, TRAIN

MONTH_S: Final = layout.UNSEEN_MS // 1000 + 1
GAP: Final = 96


def _asked(world: TableWorld) -> None:
    world.submit(world.sampler(), 1, LARGE, kind=OpKind.SAMPLE)


def _sample(world: TableWorld, services: Services) -> None:
    """As a sampler that gets the message again: what has ended is not done again."""
    sampler = world.stream(SAMPLER)
    operation = services.outcomes.get(sampler, 1)
    if not operation.state.final:
        running = services.outcomes.start(operation, ())
        services.outcomes.complete(sampler, running, Result("application/json", LARGE))


def _sampled(world: TableWorld) -> None:
    sampler = world.stream(SAMPLER)
    done = world.op(sampler, 1)
    assert world.services.outcomes.result(sampler, done).data == LARGE
    assert [one.seq for one in completions.since(world.items, SAMPLER, 0, 0)] == [1]
    assert world.markers() == []
    assert _unnamed(world, SAMPLER) == set()


def _unnamed(world: TableWorld, stream_id: str) -> set[str]:
    items = [*world.partition(layout.stream_partition(stream_id)), *world.due()]
    return world.blob_keys() - {str(item.body.get("blob")) for item in items}


def _progress(world: TableWorld, services: Services) -> None:
    sampler = world.stream(SAMPLER)
    with suppress(ConditionFailed):  # it is there: the answer was lost
        services.progress.add(sampler, services.outcomes.get(sampler, 1), 0, b"part")


def _seen_so_far(world: TableWorld) -> None:
    sampler = world.stream(SAMPLER)
    assert world.services.progress.since(sampler, world.op(sampler, 1), 0) == [b"part"]


def _begun(world: TableWorld) -> None:
    run = world.run()
    world.services.outcomes.start(world.submit(run, 1), (), owner="trainer-a")


def _put_back(world: TableWorld, services: Services) -> None:
    operation = services.outcomes.get(the_run(world), 1)
    if operation.state is OpState.RUNNING:
        assert services.outcomes.put_back(operation, counted=False)


def _is_put_back(world: TableWorld) -> None:
    operation = world.op(the_run(world), 1)
    assert (operation.state, operation.tries, operation.owner) == (OpState.PENDING, 0, None)
    assert len(world.markers()) == 1


def _buried(world: TableWorld) -> None:
    run = world.run()
    operation = world.submit(run, 1)
    for _ in range(3):
        operation = world.services.outcomes.start(operation, ())
    world.services.dead_letters.settle(run)


def _redrive(world: TableWorld, services: Services) -> None:
    for letter in services.dead_letters.list():
        services.dead_letters.redrive(letter.letter_id)


def _redriven(world: TableWorld) -> None:
    run = the_run(world)
    assert run.state is StreamState.ACTIVE
    assert [(op.state, op.tries) for op in world.log(run)][1:] == [(OpState.PENDING, 0)]
    assert world.services.dead_letters.list() == []
    assert not [sort for sort in world.stored(run) if sort.startswith(layout.SET_ASIDE)]
    assert len(world.markers()) == 1


def _reject(world: TableWorld, services: Services) -> None:
    assert services.submissions.reject(the_run(world), 1, OpKind.NOOP, InvalidRequest("no")) is not None


def _rejected(world: TableWorld) -> None:
    run = the_run(world)
    assert [op.state for op in world.log(run)] == [OpState.COMPLETED, OpState.FAILED]
    assert world.markers() == []


def _with_a_gap(world: TableWorld) -> None:
    run = world.run()
    world.submit(run, GAP)
    world.lease = world.claim(run)


def _close_gap(world: TableWorld, services: Services) -> None:
    """As the trainer that holds the run: it reads the log again, and closes what is open of the gap."""
    assert world.lease is not None
    there = {op.seq for op in services.outcomes.operations(RUN, limit=1000)}
    missing = [seq for seq in range(GAP) if seq not in there]
    if missing:
        error, conditions = InvalidRequest("has not arrived"), [world.lease.check]
        assert services.submissions.close_gap(the_run(world), missing[0], GAP - 1, error, conditions)


def _closed(world: TableWorld) -> None:
    log = world.log(the_run(world))
    assert [op.seq for op in log] == list(range(GAP + 1))
    assert {op.state for op in log[1:-1]} == {OpState.FAILED}
    assert len(world.markers()) == 1


def _held(world: TableWorld) -> None:
    world.lease = world.claim(world.run())
    world.later(LEASE_S - 5)


def _extend(world: TableWorld, services: Services) -> None:
    assert world.lease is not None
    services.leases.extend(world.lease)


def _extended(world: TableWorld) -> None:
    assert world.services.leases.held(RUN, margin_s=LEASE_S - 1)
    _extend(world, world.services)


def _rung(world: TableWorld) -> None:
    world.submit(world.run(), 1)


def _hear(world: TableWorld, services: Services) -> None:
    services.doorbell.heard(RUN)


def _rings_anew(world: TableWorld) -> None:
    """However often it was heard, the run is free, and the next operation sends a message of its own."""
    depth = world.queues.depth(TRAIN)
    world.submit(the_run(world), 2)
    world.submit(the_run(world), 3)
    assert world.queues.depth(TRAIN) == depth + 1
    world.claim(the_run(world))


def _restored(world: TableWorld, services: Services) -> None:
    assert world.lease is not None
    services.leases.restored(world.lease)


def _is_restored(world: TableWorld) -> None:
    assert world.services.leases.claims(RUN) == 0
    _extend(world, world.services)


def _is_free(world: TableWorld) -> None:
    """And its claim was not counted."""
    assert world.services.leases.claims(RUN) == 0
    assert world.partition(layout.worker_partition("trainer-a")) == []
    world.claim(the_run(world), "trainer-b")


def _announce(world: TableWorld, services: Services) -> None:
    services.workers.announce("trainer", BASE, "trainer-a", 1)


def _announced(world: TableWorld) -> None:
    assert [one.owner for one in world.services.workers.list()] == ["trainer-a"]


def _withdrawn(world: TableWorld) -> None:
    assert world.services.workers.list() == []


def _overdue(world: TableWorld) -> None:
    """One operation that waits, and the marker of one whose stream is gone."""
    world.submit(world.run(), 1)
    world.items.write([Put(layout.pending_item("gone", 5, world.now_ms), {}, 0)])
    world.later(60)
    _announce(world, world.services)  # somebody is there to hear


def _swept(world: TableWorld) -> None:
    shards = (world.partition(shard) for shard in layout.pending_shards())
    (marker,) = [marker for shard in shards for marker in shard]
    assert int(str(marker.body["remind_ms"])) > world.now_ms
    assert world.services.outcomes.first_open(RUN) is not None


def _expired(world: TableWorld) -> None:
    run = world.run()
    world.checkpoint(run, "brief", ttl_s=10)
    world.checkpoint(run, "kept")
    world.later(20)


def _purge(world: TableWorld, services: Services) -> None:
    services.retention.purge()


def _purged(world: TableWorld) -> None:
    world.services.retention.purge()  # of what the first pass left a note
    (kept,) = world.services.checkpoints.of_run(RUN)
    assert (kept.name, world.services.checkpoints.read(the_run(world), kept)) == ("kept", b"weights")
    assert world.blob_keys() == {kept.ref.blob_key}
    assert world.due() == []


def _session_of(world: TableWorld) -> Session:
    return world.services.sessions.create(TENANT, {})


def _unseen(world: TableWorld) -> None:
    """A client session with a sampling session, a month later."""
    session = _session_of(world)
    creation = world.services.streams.creation(
        SAMPLER, TENANT, StreamKind.SAMPLER, BASE, session_id=session.session_id
    )
    world.items.write(creation[1])
    world.notes["session"] = session.session_id
    world.later(MONTH_S)


def _ended(world: TableWorld) -> None:
    world.services.retention.purge()  # of what the first pass left a note
    assert world.services.sessions.list(TENANT) == []
    assert world.services.streams.of_session(world.notes["session"]) == []
    assert world.stream(SAMPLER).state is StreamState.ERASED
    assert world.stored(world.stream(SAMPLER)) == ["meta"]
    assert world.due() == []


def _in_use(world: TableWorld) -> None:
    _asked(world)
    world.later(MONTH_S)


def _kept_in_use(world: TableWorld) -> None:
    assert world.stream(SAMPLER).state is StreamState.ACTIVE
    notes = [item for item in world.due() if "sampler" in item.body]
    assert [int(item.key.sort.split("/")[0]) > world.now_ms for item in notes] == [True]
    assert world.services.outcomes.payload(world.stream(SAMPLER), 1) == LARGE


def _sampled_from(world: TableWorld) -> None:
    """A run with a sampling session of its weights."""
    run = world.run()
    saved = world.checkpoint(run, "w", kind=CheckpointKind.SAMPLER)
    _, writes = world.services.streams.creation(
        SAMPLER, TENANT, StreamKind.SAMPLER, BASE, spec={"model_path": saved.path}
    )
    world.items.write(writes)
    world.submit(world.stream(SAMPLER), 1, LARGE, kind=OpKind.SAMPLE)


def _erase(world: TableWorld, services: Services) -> None:
    with suppress(NotFound):
        services.streams.erase(RUN, TENANT)


def _both_erased(world: TableWorld) -> None:
    """What a second call does not find by the run any more, retention does."""
    world.services.retention.purge()
    for stream_id in (RUN, SAMPLER):
        stream = world.stream(stream_id)
        assert stream.state is StreamState.ERASED
        assert world.items.get(stream.scope.key_item) is None
    assert world.blob_keys() == set()
    assert world.services.checkpoints.of_tenant(TENANT) == []


ACTS: Final = {
    "complete-a-sample": Act(_asked, _sample, _sampled),
    "tell-progress": Act(_asked, _progress, _seen_so_far),
    "put-back": Act(_begun, _put_back, _is_put_back),
    "redrive": Act(_buried, _redrive, _redriven),
    "reject": Act(lambda world: world.run(), _reject, _rejected),
    "close-a-gap": Act(_with_a_gap, _close_gap, _closed),
    "hear": Act(_rung, _hear, _rings_anew),
    "extend": Act(_held, _extend, _extended),
    "restored": Act(_held, _restored, _is_restored),
    "break": Act(
        _held, lambda world, services: services.leases.break_all("trainer-a", counted=False), _is_free
    ),
    "announce": Act(lambda _: None, _announce, _announced),
    "withdraw": Act(
        lambda world: _announce(world, world.services),
        lambda world, services: services.workers.withdraw("trainer-a"),
        _withdrawn,
    ),
    "sweep": Act(_overdue, lambda world, services: services.sweeper.sweep(), _swept),
    "expire": Act(_expired, _purge, _purged),
    "end-a-session": Act(_unseen, _purge, _ended),
    "keep-a-session-in-use": Act(_in_use, _purge, _kept_in_use),
    "erase-what-is-sampled-from": Act(_sampled_from, _erase, _both_erased),
}
