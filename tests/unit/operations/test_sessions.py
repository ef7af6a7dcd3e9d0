"""Sessions, runs and workers are listed for their tenant, newest first, and found by nobody else."""

from __future__ import annotations

import pytest

from tensafe.contracts.errors import Gone, NotFound
from tensafe.operations.records import StreamKind
from tests.unit.operations.world import World


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
