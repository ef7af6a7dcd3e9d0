"""Two processes race for the last of a privacy budget: never overspent, not one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import pytest

from tensafe.local.composition import initialise
from tensafe.storage.aws_clients import aws_client
from tests.contract.emulators import aws_at, create_table
from tests.contract.moto_process import moto_process
from tests.contract.processes import Child
from tests.contract.spending import SQLITE, register, room_of, spent
from tests.support.ministack import ON_EMULATOR

DOMAINS = [
    *(f"one-{number}" for number in range(8)),
    "twelve-0",
    *(f"opening-{number}" for number in range(4)),
    "openings-0",
    "beside-0",
    "beside-1",
]


@pytest.fixture(params=["sqlite", "moto", ON_EMULATOR])
def table(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where both processes keep their items."""
    if request.param == "sqlite":
        yield SQLITE
        return
    if request.param == "moto":
        there: AbstractContextManager[object] = moto_process()
    else:
        there = aws_at(request.getfixturevalue("emulator").endpoint_url)
    name = f"budgets-{uuid4().hex}"
    with there:
        create_table(name, aws_client("dynamodb"))
        yield name


def test_two_processes_spend_a_budget_to_its_end_and_not_one_step_beyond(
    tmp_path: Path, table: str, child: Callable[..., Child]
) -> None:
    """Both want far more than the budget bears; in most domains it bears one step, or one dealt run, of one.

    Dealt runs are charged whole when they are opened, and then dealt to their last deal.
    """
    folder = tmp_path / "data"
    initialise(folder)
    racers = [child("spend", folder, table, f"run-{number}") for number in range(2)]
    shares = []
    for domain in DOMAINS:
        room = room_of(domain)
        if room.deals:
            register(folder, table, domain)
        for racer in racers:
            racer.tell(domain)
        assert [racer.line() for racer in racers] == ["open"] * 2
        racers.reverse()  # so that neither is always the first to hear it
        for racer in racers:
            racer.tell()
        steps = {id(racer): int(racer.line()) for racer in racers}
        statement = spent(folder, table, domain)
        assert statement.epsilon <= room.max_epsilon, domain
        if not room.beside:
            assert sum(steps.values()) == room.bears, domain
            assert statement.steps == room.bears * (1 + room.deals if room.deals else 1), domain
        shares.append(steps)
    assert all(any(share[id(racer)] for share in shares) for racer in racers), "they never met"
