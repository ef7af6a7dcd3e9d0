"""A dealt run killed with SIGKILL at calls of its ports: each deal is charged once and released once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tensafe.local.recovery import reclaim
from tensafe.operations.doorbell import train_queue
from tests.chaos.conftest import DealtRun
from tests.chaos.dealt_script import STEPS, DealtOutcome, dealt_outcome
from tests.chaos.forking import KILLED, Kill, Server
from tests.chaos.script import BASE, close, copied, open_folder

EVERY = 4
"""One call in so many is killed at, each time at another offset for dying before and after it."""


def _live(server: Server, source: Path, folder: Path, kills: list[Kill]) -> tuple[DealtOutcome, int]:
    """Lives that are killed as told, and one that is not."""
    services = open_folder(copied(source, folder))
    for number, kill in enumerate(kills):
        answer = server.run("dealt", folder, f"trainer-{number}", kill)
        assert answer["status"] in (KILLED, 0), (kills, answer)
        reclaim(services, f"trainer-{number}", train_queue(BASE), counted=True)
    answer = server.run("dealt", folder, "trainer-z")
    assert answer["status"] == 0, (kills, answer)
    found = dealt_outcome(services)
    close(services)
    shutil.rmtree(folder)
    return found, int(answer["said"][-1].split()[1])


@pytest.mark.timeout(600)
def test_a_dealt_run_killed_at_any_call_is_charged_once_and_draws_its_noise_once(
    space: Path, server: Server, dealt_run: DealtRun
) -> None:
    """The same bytes, results and rows as without the kill, wherever it comes."""
    wanted, calls = _live(server, dealt_run.created, space / "unharmed", [])
    assert wanted.rows == 1 + STEPS + 1
    assert (wanted.deals.completed, wanted.deals.abandoned) == (STEPS, 1)
    assert calls > 40
    for at in range(1, calls + 1, EVERY):
        kills: list[Kill] = [(at, True)] if at % 2 else [(at, False), (at // 2 + 1, True)]
        assert _live(server, dealt_run.created, space / "killed", kills)[0] == wanted, kills
