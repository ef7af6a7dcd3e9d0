"""Sessions, runs and workers are listed for their tenant, newest first, and found by nobody else."""

from __future__ import annotations

import pytest

from tensafe.contracts.errors import Gone, NotFound, RunBlocked
from tensafe.operations.records import StreamKind, StreamRecord, StreamState
from tensafe.storage.ports import Key, Put
from tests.unit.operations.world import BASE, World


def test_a_session_belongs_to_its_tenant(either: World) -> None:
    sessions = either.services.sessions
    session = sessions.create("acme", {"tags": ["a"]})
    assert sessions.get(session.session_id, "acme").body["tags"] == ["a"]
    for session_id, tenant in ((session.session_id, "rival"), ("s-0", "acme")):
        with pytest.raises(NotFound):
            sessions.get(session_id, tenant)
        with pytest.raises(NotFound):
            sessions.finish(session_id, tenant)
    assert sessions.list("rival") == []


def test_session_ids_cannot_be_guessed(memory: World) -> None:
    ids = {memory.services.sessions.create("acme", {}).session_id for _ in range(50)}
    assert len(ids) == 50
    assert all(len(bytes.fromhex(one.removeprefix("s-"))) == 16 for one in ids)


def test_a_client_cannot_name_itself_another_tenant(memory: World) -> None:
    session = memory.services.sessions.create("acme", {"tenant": "rival", "created_ms": 1})
    assert memory.services.sessions.get(session.session_id, "acme").tenant == "acme"
    assert session.created_ms == memory.now_ms


def test_sessions_are_listed_newest_first(memory: World) -> None:
    made = []
    for _ in range(3):
        memory.later(1)
        made.append(memory.services.sessions.create("acme", {}).session_id)
    found = memory.services.sessions.list("acme", limit=2)
    assert [one.session_id for one in found] == made[:0:-1]


def test_finishing_twice_is_finishing(memory: World) -> None:
    session = memory.services.sessions.create("acme", {})
    for _ in range(2):
        memory.services.sessions.finish(session.session_id, "acme")
    assert memory.services.sessions.get(session.session_id, "acme").body["finished_ms"] == memory.now_ms


def test_runs_are_listed_for_their_tenant_and_paged(either: World) -> None:
    for number in range(5):
        either.later(1)
        either.run(f"s:train:{number}", first=False)
    either.run("t:train:0", "rival", first=False)
    either.services.streams.erase("s:train:3", "acme")
    found = either.services.streams.list_runs("acme")
    assert [run.stream_id for run in found] == ["s:train:4", "s:train:2", "s:train:1", "s:train:0"]
    assert [run.stream_id for run in either.services.streams.list_runs("acme", limit=1)] == ["s:train:4"]


def test_a_stream_is_found_by_its_tenant_and_kind(memory: World) -> None:
    run, sampler = memory.run(), memory.sampler()
    streams = memory.services.streams
    assert streams.get(run.stream_id, "acme", StreamKind.RUN) == run
    assert streams.get(sampler.stream_id, "acme") is not None
    for stream_id, tenant, kind in (
        (run.stream_id, "rival", None),
        (run.stream_id, "acme", StreamKind.SAMPLER),
        (sampler.stream_id, "acme", StreamKind.RUN),
        ("none", "acme", None),
    ):
        with pytest.raises(NotFound):
            streams.get(stream_id, tenant, kind)
    streams.erase(run.stream_id, "acme")
    with pytest.raises(Gone):
        streams.get(run.stream_id, "acme")
    with pytest.raises(NotFound):
        streams.get(run.stream_id, "rival")


def test_workers_vanish_when_they_fall_silent(memory: World) -> None:
    workers = memory.services.workers
    workers.announce("trainer", "acme/tiny", "trainer-a", 5)
    memory.later(20)
    workers.announce("sampler", "acme/tiny", "sampler-b", 25)
    assert [(one.role, one.owner, one.since_s) for one in workers.list()] == [
        ("sampler", "sampler-b", 25),
        ("trainer", "trainer-a", 5),
    ]
    memory.later(15)
    assert [one.owner for one in workers.list()] == ["sampler-b"]
    workers.announce("trainer", "acme/tiny", "trainer-a", 40)
    workers.withdraw("sampler-b")
    workers.withdraw("sampler-b")
    assert [one.owner for one in workers.list()] == ["trainer-a"]


def _days(world: World, count: int, session_id: str | None = None) -> None:
    """Retention runs daily, and so does the session's client if one is named."""
    for _ in range(count):
        world.later(86_400)
        if session_id is not None:
            world.services.sessions.get(session_id, "acme")
        world.services.retention.purge()


def _sampler(world: World, sampler_id: str, session_id: str | None = None) -> StreamRecord:
    record, writes = world.services.streams.creation(
        sampler_id, "acme", StreamKind.SAMPLER, BASE, session_id=session_id
    )
    world.items.write(writes)
    return record


def test_a_session_is_kept_while_its_client_is_seen(either: World) -> None:
    sessions = either.services.sessions
    seen, silent = (sessions.create("acme", {"tags": ["a"]}).session_id for _ in range(2))
    sampler = _sampler(either, "s-1:sample:0", seen)
    _days(either, 29, seen)
    assert {one.session_id for one in sessions.list("acme")} == {seen, silent}
    _days(either, 60, seen)
    assert [one.session_id for one in sessions.list("acme")] == [seen]
    assert sessions.get(seen, "acme").body["tags"] == ["a"]
    assert either.services.streams.get(sampler.stream_id, "acme") == sampler
    with pytest.raises(NotFound):
        sessions.get(silent, "acme")


def test_a_look_that_was_killed_before_it_was_settled_is_repeated(memory: World) -> None:
    session_id = memory.services.sessions.create("acme", {}).session_id
    _sampler(memory, "n-0:sample:0")
    memory.submit(memory.stream("n-0:sample:0"), 1)
    memory.later(29 * 86_400)
    memory.services.sessions.get(session_id, "acme")
    memory.later(86_400)
    before = [Put(item.key, item.body, 0) for item in memory.due()]
    for _ in range(2):
        memory.services.retention.purge()
        notes = memory.due()
        assert len(notes) == 2
        memory.items.write(before)
    memory.services.retention.purge()
    assert memory.due() == notes


def test_a_client_is_noted_once_a_day(memory: World) -> None:
    session_id = memory.services.sessions.create("acme", {}).session_id
    for _ in range(3 * 24):
        memory.later(3600)
        memory.services.sessions.get(session_id, "acme")
    item = memory.items.get(Key(f"session/{session_id}", "meta"))
    assert item is not None
    assert item.version == 1 + 3


def test_a_session_that_nobody_uses_leaves_nothing_but_its_runs(either: World) -> None:
    session_id = either.services.sessions.create("acme", {}).session_id
    run, writes = either.services.streams.creation(
        "s-1:train:0", "acme", StreamKind.RUN, BASE, session_id=session_id
    )
    either.items.write(writes)
    samplers = [_sampler(either, f"s-1:sample:{number}", session_id) for number in range(3)]
    either.complete(samplers[0], either.submit(samplers[0], 1))
    _days(either, 38)
    assert either.services.sessions.list("acme") == []
    assert either.partition(f"session/{session_id}") == []
    assert [either.stored(sampler) for sampler in samplers] == [[], [], []]
    assert either.due() == []
    assert either.services.streams.get(run.stream_id, "acme") == run


def test_a_sampling_session_without_a_client_session_ends_by_itself(either: World) -> None:
    samplers = [_sampler(either, f"n-{number}:sample:0") for number in range(3)]
    either.complete(samplers[0], either.submit(samplers[0], 1), b"x" * 100_000)
    _days(either, 29)
    assert either.services.streams.find("n-0:sample:0") == samplers[0]
    either.submit(samplers[1], 1)
    _days(either, 1)
    with pytest.raises(Gone):
        either.services.streams.get("n-0:sample:0", "acme")
    assert either.services.streams.get("n-1:sample:0", "acme") == samplers[1]  # its sample waits
    either.complete(samplers[1], either.op(samplers[1], 1))
    _days(either, 8)
    for sampler in samplers:
        assert either.stored(sampler) == [] or sampler is samplers[1]
    _days(either, 8)
    assert either.stored(samplers[1]) == []
    assert either.blob_keys() == set()


def test_a_sample_that_comes_at_the_last_moment_is_kept(memory: World) -> None:
    sampler = _sampler(memory, "n-0:sample:0")
    memory.later(31 * 86_400)
    came = []

    class Late:
        """A sample is submitted just before, or just after, the sampling session is closed."""

        def __init__(self, after: bool) -> None:
            self.after = after

        def __getattr__(self, name: str) -> object:
            return getattr(memory.items, name)

        def write(self, writes) -> None:
            closes = any(getattr(one, "body", {}).get("state") == "blocked" for one in writes)
            if closes and not came and not self.after:
                came.append(memory.submit(sampler, 1))
            memory.items.write(writes)
            if closes and not came:
                came.append(None)
                with pytest.raises(RunBlocked):
                    memory.submit(sampler, 1)

    memory.open(items=Late(after=False)).retention.purge()
    assert memory.services.streams.get("n-0:sample:0", "acme").state is StreamState.ACTIVE
    assert memory.op(sampler, 1) == came[0]
    memory.fail(sampler, memory.op(sampler, 1))
    came.clear()
    memory.later(8 * 86_400)
    memory.open(items=Late(after=True)).retention.purge()
    assert came == [None]
    with pytest.raises(Gone):
        memory.services.streams.get("n-0:sample:0", "acme")
