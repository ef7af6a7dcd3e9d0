"""Processes are killed with SIGKILL at every call of a port: nothing acknowledged is lost or done twice."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tensafe.local.recovery import reclaim
from tensafe.operations.doorbell import train_queue
from tensafe.services import Services
from tests.chaos.forking import KILLED, Kill, Server
from tests.chaos.script import (
    BASE,
    LOGS,
    Outcome,
    close,
    copied,
    look_again,
    open_folder,
    outcome,
    submit_all,
    unnamed_blobs,
)


@pytest.fixture(scope="module")
def unharmed(space: Path, submitted: Path, server: Server) -> tuple[Outcome, int]:
    """The outcome without kills, and how many calls it took."""
    folder = copied(submitted, space / "unharmed")
    services = open_folder(folder)
    look_again(services)
    answer = server.run("train", folder, "trainer-0")
    assert answer["status"] == 0
    assert unnamed_blobs(services, folder) == 0
    found = outcome(services)
    close(services)
    shutil.rmtree(folder)
    return found, int(answer["said"][-1].split()[1])


def _harm(server: Server, submitted: Path, folder: Path, kills: Sequence[Kill]) -> tuple[Outcome, int]:
    """Trainers killed as told, one after the other, and one that lives; blobs that nobody names."""
    services = open_folder(copied(submitted, folder))
    for number, kill in enumerate(kills):
        answer = server.run("train", folder, f"trainer-{number}", kill)
        assert answer["status"] in (KILLED, 0), (kills, answer)
        reclaim(services, f"trainer-{number}", train_queue(BASE), counted=True)
    look_again(services)
    answer = server.run("train", folder, "trainer-z")
    assert answer["status"] == 0, (kills, answer)
    found, orphans = outcome(services), unnamed_blobs(services, folder)
    close(services)
    shutil.rmtree(folder)
    return found, orphans


def _places(calls: int) -> list[Kill]:
    """Before the first call and after every one; to die before a call is to die after the one before it."""
    return [(1, False), *((call, True) for call in range(1, calls + 1)), (calls // 2, False)]


@pytest.mark.timeout(600)
def test_state_01_a_trainer_killed_at_any_call_loses_and_repeats_nothing(
    space: Path, server: Server, submitted: Path, unharmed: tuple[Outcome, int]
) -> None:
    """The same bytes, results, checkpoints, charges and noise as without the kill."""
    wanted, calls = unharmed
    assert calls > 60
    for kill in _places(calls):
        found, orphans = _harm(server, submitted, space / "killed", [kill])
        assert found == wanted, kill
        assert orphans == 0, kill


@pytest.mark.timeout(600)
def test_state_01_a_trainer_killed_at_any_moment_loses_and_repeats_nothing(
    space: Path, server: Server, submitted: Path, unharmed: tuple[Outcome, int]
) -> None:
    """Not at a call but in the middle of whatever it was doing."""
    for number in range(16):
        found, _ = _harm(server, submitted, space / "moment", [0.03 * (number + 1)])
        assert found == unharmed[0], number


@pytest.mark.timeout(600)
def test_state_01_a_trainer_killed_twice_loses_and_repeats_nothing(
    space: Path, server: Server, submitted: Path, unharmed: tuple[Outcome, int]
) -> None:
    wanted, calls = unharmed
    for kill_at in range(2, calls + 1, 6):
        kills: list[Kill] = [(kill_at, True), (1 + kill_at * 7 % 40, False)]
        assert _harm(server, submitted, space / "twice", kills)[0] == wanted, kills


@pytest.mark.timeout(600)
def test_queue_01_an_edge_killed_at_any_call_loses_nothing_that_it_acknowledged(
    space: Path, server: Server, empty: Path
) -> None:
    """And its client's retry makes no second operation of any."""
    answer = server.run("edge", copied(empty, space / "edge"), "edge")
    calls = int(answer["said"][-1].split()[1])
    shutil.rmtree(space / "edge")
    assert calls > 30
    for kill in _places(calls):
        folder = copied(empty, space / "edge")
        answer = server.run("edge", folder, "edge", kill)
        assert answer["status"] == KILLED
        services = open_folder(folder)
        _check_retry(services, {(line.split()[0], int(line.split()[1])) for line in answer["said"]})
        assert unnamed_blobs(services, folder) == 0
        close(services)
        shutil.rmtree(folder)


def _check_retry(services: Services, acknowledged: set[tuple[str, int]]) -> None:
    """What was acknowledged is there; sending everything again completes the logs and rings for each."""
    before = {
        (run_id, operation.seq): operation
        for run_id in LOGS
        for operation in services.outcomes.operations(run_id, limit=1000)
    }
    assert acknowledged <= before.keys()
    assert len(before) - len(acknowledged) in (0, 1)
    for _ in submit_all(services):
        pass
    for run_id, steps in LOGS.items():
        stream = services.streams.get(run_id, "acme")
        log = services.outcomes.operations(run_id, limit=1000)
        assert [operation.seq for operation in log] == list(range(len(steps)))
        assert all(before.get((run_id, operation.seq), operation) == operation for operation in log)
        payloads = [services.outcomes.payload(stream, seq) for seq in range(len(steps))]
        assert payloads == [payload for _, payload in steps]
    assert _rung_for(services) == set(LOGS)


def _rung_for(services: Services) -> set[str]:
    """The runs for which a message waits."""
    found: set[str] = set()
    while messages := services.ports.queues.receive(train_queue(BASE), visibility_s=60, max_messages=10):
        found |= {str(message.body["stream"]) for message in messages}
    return found
