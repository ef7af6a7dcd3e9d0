"""DynamoDB fails at any request of every kind of transaction, and stays away: nothing is half done.

The faults lie between the SDK and the service. Whoever acted is told to try again; what is stored is what it
was before its transaction, or what it is after it; and once the service answers, the same call again leads
to what it would have led to at once. Every function that writes items is in one of the acts.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import pytest
from botocore.exceptions import EndpointConnectionError

from tensafe.contracts.errors import Unavailable
from tensafe.operations import layout
from tests.contract.emulators import LOST, Fault, Wire, create_table, moto_in_process
from tests.contract.outages import edge, operations, tasks, work
from tests.contract.outages.world import Act, Site, TableWorld
from tests.project_files import ROOT

WRITES: Final = "TransactWriteItems"
DOWN: Final = EndpointConnectionError(endpoint_url="x")
THROTTLED: Final = (400, {"__type": "ProvisionedThroughputExceededException"})
OUTAGES: Final[dict[str, tuple[Fault, Fault]]] = {
    "down": (DOWN, DOWN),
    "throttled": (THROTTLED, THROTTLED),
    "down-once-it-took-effect": (LOST, DOWN),
}
ACTS: Final[dict[str, Act]] = {**operations.ACTS, **work.ACTS, **edge.ACTS, **tasks.ACTS}
ELSEWHERE: Final[dict[Site, str]] = {
    ("tensafe.local.liveness", "Watch._write"): "the supervisor of one machine, which has no DynamoDB",
    ("tensafe.local.upgrade", "_upgrade_domain"): "data directories of one machine",
}
"""Functions that write items and are in no act, and why."""


@pytest.fixture(autouse=True)
def _one_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due or pending lies in one partition: which of sixteen would depend on random names."""
    for name in ("DUE_SHARDS", "PENDING_SHARDS"):
        monkeypatch.setattr(layout, name, 1)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@pytest.fixture
def new_world(wire: Wire) -> Callable[[Act], TableWorld]:
    """Makes worlds, each with its items in a table of its own, where an act was prepared."""
    numbers = count()

    def new(act: Act) -> TableWorld:
        world = TableWorld()
        act.prepare(world)
        table = f"items-{next(numbers)}"
        world.move(create_table(table), table)
        return world

    return new


@pytest.mark.parametrize(
    ("name", "outage"),
    [
        (name, outage)
        for name in ACTS
        for outage in OUTAGES
        if outage != "throttled" or name in operations.ACTS
    ],
)
def test_an_outage_at_any_request_leaves_all_or_nothing_and_the_same_call_again_ends_it(
    wire: Wire, new_world: Callable[[Act], TableWorld], name: str, outage: str
) -> None:
    act, (first, others) = ACTS[name], OUTAGES[outage]
    calm = new_world(act)
    wire.forget()
    act.do(calm, calm.open())
    calls = _named(wire.called)
    with calm.at_rest():
        act.check(calm)
    assert WRITES in calls
    for number in _places(calls):
        world = new_world(act)
        services = world.open()
        wire.forget()
        with wire.outage(number, first, others), pytest.raises(Unavailable):
            act.do(world, services)
        assert _named(wire.called[:number]) == calls[:number]
        if calls[number - 1] == WRITES:
            with world.at_rest():
                world.check_last(applied=first == LOST)
        act.do(world, services)
        with world.at_rest():
            act.check(world)
    act.do(world, world.open())  # once more, from another process
    with world.at_rest():
        act.check(world)


def _named(called: Sequence[str]) -> list[str]:
    return [call.rpartition(".")[2] for call in called]


def _places(calls: Sequence[str]) -> list[int]:
    """Requests, from 1: all that write, and of reads in a row the first three and the last."""
    found: list[int] = []
    row = 0
    for number, (call, following) in enumerate(zip(calls, [*calls[1:], ""], strict=True), start=1):
        row = 0 if call == WRITES else row + 1
        if row <= 3 or following in (WRITES, ""):
            found.append(number)
    return found


def test_every_function_that_writes_items_is_in_an_act() -> None:
    reached: set[Site] = set()
    for act in ACTS.values():
        world = TableWorld()
        act.prepare(world)
        world.switch.sites.clear()
        act.do(world, world.open())
        reached |= world.switch.sites
    written = {site for root in ("functions", "gpu_tasks") for site in _sites(ROOT / root)}
    assert len(written) > 70
    assert reached <= written
    assert written - reached == ELSEWHERE.keys()


def _sites(root: Path) -> Iterator[Site]:
    """Functions under the root that call `write` or `write_relaxed` of something named items."""
    for path in sorted(root.rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        yield from ((module, name) for name in _writing(ast.parse(path.read_text()), ()))


def _writing(node: ast.AST, names: tuple[str, ...]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inside = names
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            inside = (*names, child.name)
        if isinstance(child, ast.Attribute) and child.attr in ("write", "write_relaxed"):
            owner = ast.unparse(child.value).rpartition(".")[2]
            if owner.strip("_") == "items":
                yield ".".join(names)
        yield from _writing(child, inside)
