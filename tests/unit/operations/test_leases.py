"""A run has one holder; a holder that lost it can compute, but not write."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tensafe.operations import layout
from tensafe.operations.leases import LeaseLost
from tests.support.fencing import late_writes_are_rejected
from tests.unit.operations.world import LEASE_S, TRAIN, World


def test_a_lease_is_exclusive_until_it_expires(either: World) -> None:
    run = either.run()
    leases = either.services.leases
    first = leases.claim(run.stream_id, "trainer-a")
    assert first is not None
    assert leases.claim(run.stream_id, "trainer-b") is None
    either.later(LEASE_S - 1)
    assert leases.claim(run.stream_id, "trainer-b") is None
    either.later(1)
    second = leases.claim(run.stream_id, "trainer-b")
    assert second is not None
    assert second.token > first.token


def test_extending_pushes_the_expiry_out(memory: World) -> None:
    run = memory.run()
    lease = memory.claim(run)
    for _ in range(5):
        memory.later(LEASE_S - 1)
        memory.services.leases.extend(lease)
    assert memory.services.leases.claim(run.stream_id, "trainer-b") is None
    assert memory.services.leases.held(run.stream_id, margin_s=LEASE_S - 1)
    assert not memory.services.leases.held(run.stream_id, margin_s=LEASE_S)


def test_racing_claims_have_one_winner(either: World) -> None:
    run = either.run()
    for _ in range(5):
        start = threading.Barrier(6)

        def claim(number: int, start: threading.Barrier = start) -> bool:
            start.wait()
            return either.services.leases.claim(run.stream_id, f"trainer-{number}") is not None

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(claim, range(6))) == 1
        either.later(LEASE_S)


def test_who_lost_the_lease_can_start_complete_or_fail_nothing(either: World) -> None:
    late_writes_are_rejected(either)


def test_who_lost_the_lease_cannot_extend_release_or_abandon(memory: World) -> None:
    run = memory.run()
    lost = memory.claim(run, "trainer-a")
    memory.later(LEASE_S)
    memory.claim(run, "trainer-b")
    leases = memory.services.leases
    for act in (leases.extend, leases.release, leases.restored, lambda lease: leases.abandon(lease, "why")):
        with pytest.raises(LeaseLost):
            act(lost)
    assert leases.held(run.stream_id, margin_s=0)
    assert leases.claim(run.stream_id, "trainer-c") is None


@pytest.mark.parametrize("way", ["release", "abandon"])
def test_a_late_heartbeat_does_not_bring_a_released_lease_back(either: World, way: str) -> None:
    run = either.run()
    leases = either.services.leases
    lease = either.claim(run)
    leases.release(lease) if way == "release" else leases.abandon(lease, "why")
    with pytest.raises(LeaseLost):
        leases.extend(lease)
    assert not leases.held(run.stream_id, margin_s=0)
    assert leases.claim(run.stream_id, "trainer-b") is not None


def test_a_heartbeat_that_races_with_the_release_does_not_bring_the_lease_back(memory: World) -> None:
    run = memory.run()
    lease = memory.claim(run)

    class Releasing:
        """Releases between the heartbeat's read and its write."""

        def __getattr__(self, name: str) -> object:
            return getattr(memory.items, name)

        def write(self, writes) -> None:
            memory.services.leases.release(lease)
            memory.items.write(writes)

    with pytest.raises(LeaseLost):
        memory.open(items=Releasing()).leases.extend(lease)
    assert not memory.services.leases.held(run.stream_id, margin_s=0)


def test_an_owner_may_claim_again_what_it_still_holds(memory: World) -> None:
    run = memory.run()
    first = memory.claim(run, "trainer-a")
    second = memory.claim(run, "trainer-a")
    assert second.token > first.token
    with pytest.raises(LeaseLost):
        memory.services.leases.extend(first)


def test_claims_are_counted_until_a_restore_succeeds(memory: World) -> None:
    run = memory.run()
    leases = memory.services.leases
    for count in (1, 2):
        assert memory.claim(run).claims == count
    lease = memory.claim(run)
    assert leases.claims(run.stream_id) == 3
    leases.restored(lease)
    assert leases.claims(run.stream_id) == 0
    assert memory.claim(run).claims == 1


def test_abandoning_keeps_the_count_and_says_why(memory: World) -> None:
    run = memory.run()
    leases = memory.services.leases
    leases.abandon(memory.claim(run), "MemoryError")
    assert leases.claims(run.stream_id) == 1
    assert leases.reason(run.stream_id) == "MemoryError"
    lease = memory.claim(run)
    assert lease.claims == 2
    leases.release(lease)
    assert (leases.claims(run.stream_id), leases.reason(run.stream_id)) == (0, None)


def test_a_run_that_takes_no_operations_cannot_be_claimed(memory: World) -> None:
    leases = memory.services.leases
    blocked, erased = memory.run("s:train:0"), memory.run("s:train:1")
    memory.services.dead_letters.bury(blocked, memory.submit(blocked, 1), "it died")
    memory.services.streams.erase(erased.stream_id, "acme")
    for stream_id in (blocked.stream_id, erased.stream_id, "s:train:9"):
        assert leases.claim(stream_id, "trainer-a") is None
    assert not leases.held(erased.stream_id, margin_s=0)


@pytest.mark.parametrize("change", ["erase", "bury"])
def test_a_claim_that_races_with_erasing_or_blocking_is_refused(memory: World, change: str) -> None:
    """Else its token would be newer than the one that the change had spent."""
    run = memory.run()
    operation = memory.submit(run, 1)

    class Changing:
        """Changes the run between the claim's reads of it and of the fence."""

        def __getattr__(self, name: str) -> object:
            return getattr(memory.items, name)

        def get(self, key):
            found = memory.items.get(key)
            if key.sort == "meta":
                if change == "erase":
                    memory.services.streams.erase(run.stream_id, "acme")
                else:
                    memory.services.dead_letters.bury(run, operation, "it died")
            return found

    assert memory.open(items=Changing()).leases.claim(run.stream_id, "trainer-a") is None


def test_the_leases_of_a_dead_owner_are_freed_at_once(either: World) -> None:
    leases = either.services.leases
    mine = [either.run(f"s:train:{number}") for number in range(3)]
    other = either.run("s:train:9")
    for run in mine:
        leases.claim(run.stream_id, "trainer-a", queue=TRAIN, receipt=f"r-{run.stream_id}")
    either.claim(other, "trainer-b")
    freed = leases.break_all("trainer-a")
    assert {(item.key.sort, item.body["queue"], item.body["receipt"]) for item in freed} == {
        (run.stream_id, TRAIN, f"r-{run.stream_id}") for run in mine
    }
    assert all(leases.claim(run.stream_id, "trainer-c") for run in mine)
    assert leases.claim(other.stream_id, "trainer-c") is None
    assert leases.break_all("trainer-a") == []


def test_more_leases_than_a_page_are_freed(memory: World) -> None:
    runs = [memory.run(f"s:train:{number}", first=False) for number in range(130)]
    for run in runs:
        memory.claim(run, "trainer-a")
    assert len(memory.services.leases.break_all("trainer-a")) == 130
    assert not any(memory.services.leases.held(run.stream_id, margin_s=0) for run in runs)
    assert memory.partition(layout.worker_partition("trainer-a")) == []


def test_breaking_leaves_what_somebody_else_has_claimed_since(memory: World) -> None:
    run = memory.run()
    memory.claim(run, "trainer-a")
    memory.later(LEASE_S)
    kept = memory.claim(run, "trainer-b")
    memory.services.leases.break_all("trainer-a")
    memory.services.leases.extend(kept)
    assert memory.services.leases.claim(run.stream_id, "trainer-c") is None
    assert memory.partition(layout.worker_partition("trainer-a")) == []
