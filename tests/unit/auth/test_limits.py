"""Limits of tenants: windows, ceilings, what an operator sets, and what a refusal says."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.auth.ceilings import COMMIT_S, HELD_S, OUTSTANDING_S, Ceilings
from tensafe.auth.limits import CACHE_S, LIMIT_MAX, Limits, TenantLimits
from tensafe.auth.quotas import Quotas
from tensafe.auth.windows import Windows
from tensafe.contracts.errors import InvalidRequest, QuotaExceeded, RateLimited, Unavailable
from tensafe.operations.records import OpKind
from tensafe.operations.submissions import Submission
from tensafe.storage.ports import ConditionFailed, Write
from tests.fakes import MemoryItems
from tests.unit.operations.world import TENANT, World


class Clock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


class Counting(MemoryItems):
    writes = 0

    def write_relaxed(self, writes: list[Write]) -> None:  # type: ignore[override]
        super().write_relaxed(writes)
        self.writes += 1


LIMITS = {"operations": 1000, "bytes": 10_000}


def spend(windows: Windows, bytes_: int = 1) -> int:
    taken = 0
    try:
        while True:
            windows.take(TENANT, {"operations": 1, "bytes": bytes_}, LIMITS)
            taken += 1
    except RateLimited:
        return taken


def test_a_busy_process_writes_once_for_many_requests() -> None:
    items, clock = Counting(), Clock()
    assert spend(Windows(items, clock_ms=clock)) == 1000
    assert items.writes <= 25


def test_whichever_limit_comes_first_holds_and_says_when_it_ends() -> None:
    items, clock = MemoryItems(), Clock()
    clock.ms += 2_500
    windows = Windows(items, clock_ms=clock)
    assert spend(windows, bytes_=100) == 100
    with pytest.raises(RateLimited) as caught:
        windows.take(TENANT, {"operations": 1, "bytes": 100}, LIMITS)
    assert (caught.value.code, caught.value.retry_after_s) == ("rate_limited", 8)
    assert "bytes" in caught.value.message
    windows.take(TENANT, {"operations": 1, "bytes": 0}, LIMITS)  # of the other there is some left
    windows.take("another", {"operations": 1, "bytes": 100}, LIMITS)
    clock.ms += 7_500
    windows.take(TENANT, {"operations": 1, "bytes": 100}, LIMITS)


def test_a_refused_client_costs_the_store_nothing() -> None:
    items = MemoryItems()
    windows = Windows(items, clock_ms=Clock())
    spend(windows)
    items.get = items.write_relaxed = None  # type: ignore[method-assign, assignment]
    assert spend(windows) == 0


def test_what_no_window_can_grant_is_final() -> None:
    with pytest.raises(QuotaExceeded):
        Windows(MemoryItems(), clock_ms=Clock()).take(TENANT, {"operations": 1, "bytes": 10_001}, LIMITS)


@given(st.integers(0, 2**32))
def test_no_window_ever_grants_more_than_its_limit(seed: int) -> None:
    """Whatever the clocks of three processes say."""
    chance, items = random.Random(seed), MemoryItems()
    clocks = [Clock() for _ in range(3)]
    processes = [Windows(items, clock_ms=clock) for clock in clocks]
    granted: dict[int, int] = {}
    for _ in range(300):
        index = chance.randrange(3)
        clocks[index].ms += chance.choice([0, 0, 50, 3_000, 11_000])
        try:
            processes[index].take(TENANT, {"operations": 1}, {"operations": 9})
        except RateLimited:
            continue
        window = processes[index]._share(TENANT).window
        granted[window] = granted.get(window, 0) + 1
    assert max(granted.values()) <= 9


def test_a_counter_that_never_settles_is_unavailable() -> None:
    class Contended(MemoryItems):
        def write_relaxed(self, writes: object) -> None:
            raise ConditionFailed("lost", index=0)

    with pytest.raises(Unavailable):
        Windows(Contended(), clock_ms=Clock()).take(TENANT, {"operations": 1}, LIMITS)
    with pytest.raises(Unavailable):
        Ceilings(Contended(), clock_ms=Clock()).take(TENANT, "runs", 5, lambda _: 0)


@given(st.integers(0, 2**32), st.sampled_from([1, 4]))
def test_there_are_never_more_things_than_may_be(seed: int, batch_max: int) -> None:
    """Three processes that create late, within COMMIT_S, while things end at random."""
    chance, clock, items, limit = random.Random(seed), Clock(), MemoryItems(), 10
    processes = [Ceilings(items, clock_ms=clock) for _ in range(3)]
    present, coming = 0, list[int]()
    for _ in range(400):
        clock.ms += chance.choice([0, 20, 400, 1_000])
        due = [at for at in coming if at <= clock.ms]
        coming = [at for at in coming if at > clock.ms]
        present += len(due)
        assert present + len(coming) <= limit
        if present and chance.random() < 0.3:
            present -= 1
        there = present
        if chance.choice(processes).take(TENANT, "t", limit, lambda _, n=there: n, batch_max=batch_max):  # type: ignore[misc]
            coming.append(clock.ms + chance.randrange(int(COMMIT_S * 1000)))


def test_what_has_ended_makes_room() -> None:
    clock, items, there = Clock(), Counting(), 0
    ceilings = Ceilings(items, clock_ms=clock)
    for _ in range(500):
        clock.ms += 100
        assert ceilings.take(TENANT, "t", 200, lambda _: there, batch_max=16)
    assert items.writes <= 120
    clock.ms += int((OUTSTANDING_S + HELD_S + 1) * 1000)
    there = 200
    taken = 0
    while ceilings.take(TENANT, "t", 200, lambda _: there, batch_max=16):
        taken += 1
    assert taken <= 200
    assert not ceilings.take(TENANT, "t", 200, lambda _: 0)  # refused for a second without counting again
    clock.ms += int((OUTSTANDING_S + 2) * 1000)
    there = 0
    assert ceilings.take(TENANT, "t", 200, lambda _: there)


def test_an_operator_sets_some_limits_and_the_defaults_hold_for_the_rest() -> None:
    items, clock = MemoryItems(), Clock()
    limits = Limits(items, clock=lambda: clock.ms / 1000)
    assert limits.of(TENANT) == TenantLimits()
    changed = limits.change(TENANT, {"runs": 3})
    assert changed == replace(TenantLimits(), runs=3)
    assert limits.change(TENANT, {"sessions": 4}) == replace(changed, sessions=4)
    assert limits.of(TENANT) == TenantLimits()
    clock.ms += int(CACHE_S * 1000)
    assert limits.of(TENANT).runs == 3
    assert limits.of("another") == TenantLimits()
    assert limits.reset(TENANT) == limits.stored(TENANT) == TenantLimits()
    for wrong in (0, -1, LIMIT_MAX + 1, True):
        with pytest.raises(InvalidRequest):
            limits.change(TENANT, {"runs": wrong})


def quotas(world: World, **limits: int) -> Quotas:
    world.services.quotas.limits.change(TENANT, limits)
    return world.services.quotas


def test_runs_and_sessions_are_counted_as_they_are() -> None:
    world = World()
    own = quotas(world, runs=2, sessions=2)
    world.run("s-1:train:0")
    own.admit_run(TENANT)
    world.run("s-1:train:1")
    with pytest.raises(QuotaExceeded, match="2 runs"):
        own.admit_run(TENANT)
    world.run("s-2:train:1", tenant="another")
    world.services.streams.erase("s-1:train:0", TENANT)
    world.later(60)
    own.admit_run(TENANT)
    for _ in range(2):
        own.admit_session(TENANT)
        world.services.sessions.create(TENANT, {})
    with pytest.raises(QuotaExceeded, match="2 client sessions"):
        own.admit_session(TENANT)


def test_open_operations_are_the_tenants_own_and_end() -> None:
    world = World()
    other, run = world.run("s-9:train:0", tenant="another"), world.run()
    for seq in range(1, 50):
        world.submit(other, seq)
    own = quotas(world, open_operations=3)
    for seq in range(1, 4):
        own.admit_operation(TENANT, 0)
        world.submit(run, seq)
    with pytest.raises(RateLimited) as caught:
        own.admit_operation(TENANT, 0)
    assert (caught.value.code, caught.value.retry_after_s) == ("too_many_open_operations", 2)
    world.later(60)
    with pytest.raises(RateLimited):
        own.admit_operation(TENANT, 0)
    world.complete(run, world.op(run, 1))
    world.later(60)
    own.admit_operation(TENANT, 0)


def test_a_submission_made_before_limits_existed_counts() -> None:
    """An older store has no counters: they begin with what is there."""
    world = World()
    run = world.run()
    world.services.submissions.submit(run, Submission(1, OpKind.NOOP, b"{}"))
    own = quotas(world, open_operations=1, runs=1)
    with pytest.raises(RateLimited):
        own.admit_operation(TENANT, 0)
    with pytest.raises(QuotaExceeded):
        own.admit_run(TENANT)
