"""Data keys are made once, cached for a while and forgotten; large payloads become blobs."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import Gone, IntegrityError
from tensafe.storage.ports import ConditionFailed, Delete, Put, UnwrapFailed
from tensafe.vault import forgetting
from tensafe.vault import vault as module
from tensafe.vault.scope import Scope, domain_scope, stream_scope
from tensafe.vault.vault import INLINE_MAX_BYTES, Stored, Vault
from tests.fakes import MemoryBlobs, MemoryItems, MemoryKeyRing

SCOPE = stream_scope("acme", "s-1:train:0")


class CountingKeyRing(MemoryKeyRing):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.unwraps = 0

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        self.unwraps += 1
        return super().unwrap(wrapped, context)


class World:
    def __init__(self) -> None:
        self.now_s = 1000.0
        self.items = MemoryItems()
        self.blobs = MemoryBlobs()
        self.keyring = CountingKeyRing()
        self.vault = self.open()
        self.vault.ensure_key(SCOPE)

    def open(self, cache_s: float = 300.0) -> Vault:
        return Vault(self.items, self.blobs, self.keyring, cache_s=cache_s, clock=lambda: self.now_s)

    def erase(self) -> None:
        self.items.write([Delete(SCOPE.key_item, None)])


@pytest.fixture
def world() -> World:
    return World()


def test_what_one_process_seals_another_opens(world: World) -> None:
    sealed = world.vault.seal(SCOPE, "part", b"secret")
    assert world.open().open(SCOPE, "part", sealed) == b"secret"


def test_a_scope_has_one_key_whoever_makes_it(world: World) -> None:
    other = domain_scope("acme", "letters")
    start = threading.Barrier(8)

    def make(_: int) -> bytes:
        vault = world.open()
        start.wait()
        vault.ensure_key(other)
        return vault.seal(other, "part", b"secret")

    with ThreadPoolExecutor(8) as pool:
        sealed = list(pool.map(make, range(8)))
    reader = world.open()
    assert {reader.open(other, "part", one) for one in sealed} == {b"secret"}


def test_ensuring_a_key_again_keeps_it(world: World) -> None:
    sealed = world.vault.seal(SCOPE, "part", b"secret")
    world.vault.ensure_key(SCOPE)
    assert world.open().open(SCOPE, "part", sealed) == b"secret"


def test_a_second_key_for_a_scope_is_refused_by_its_write(world: World) -> None:
    with pytest.raises(ConditionFailed):
        world.items.write([world.vault.new_key(SCOPE)])


def test_the_data_key_rests_wrapped(world: World) -> None:
    world.vault.seal(SCOPE, "part", b"")
    ((_, key),) = world.vault._keys.values()
    item = world.items.get(SCOPE.key_item)
    assert item is not None
    assert key not in item.sealed
    assert item.body == {"key_id": world.keyring.key_id}


def test_a_wrapped_key_in_another_scope_s_place_does_not_unwrap(world: World) -> None:
    item = world.items.get(SCOPE.key_item)
    assert item is not None
    for thief in (
        stream_scope("acme", "s-1:train:1"),
        stream_scope("rival", "s-9:train:0"),
        domain_scope("acme", "letters"),
    ):
        world.items.write([Put(thief.key_item, item.body, 0, sealed=item.sealed)])
        with pytest.raises(UnwrapFailed):
            world.open().seal(thief, "part", b"")


def test_the_same_stream_under_another_tenant_is_another_scope(world: World) -> None:
    """Their key item is the same one, and it does not unwrap for them."""
    with pytest.raises(UnwrapFailed):
        world.open().seal(Scope("rival", SCOPE.name), "part", b"")


def test_keys_are_cached_for_a_while(world: World) -> None:
    vault = world.open(cache_s=60)
    for _ in range(5):
        vault.seal(SCOPE, "part", b"")
    assert world.keyring.unwraps == 1
    world.now_s += 59
    vault.seal(SCOPE, "part", b"")
    assert world.keyring.unwraps == 1
    world.now_s += 1
    vault.seal(SCOPE, "part", b"")
    assert world.keyring.unwraps == 2


def test_a_key_leaves_memory_when_its_time_is_over(world: World) -> None:
    vault = world.open(cache_s=60)
    vault.seal(SCOPE, "part", b"")
    world.now_s += 30
    other = domain_scope("acme", "letters")
    vault.ensure_key(other)
    vault.seal(other, "part", b"")
    vault.forget_stale()
    assert set(vault._keys) == {SCOPE, other}
    world.now_s += 30
    vault.forget_stale()
    assert set(vault._keys) == {other}
    world.now_s += 30
    vault.forget_stale()
    assert not vault._keys


def test_nobody_has_to_ask_for_that(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "WATCH", forgetting.Watch(tick_s=0.01))
    vault = world.open(cache_s=60)
    vault.seal(SCOPE, "part", b"")
    time.sleep(0.05)
    assert vault._keys
    world.now_s += 60
    assert soon(lambda: not vault._keys)


class Holder:
    def __init__(self, fails: bool) -> None:
        self.fails = fails
        self.asked = 0

    def forget_stale(self) -> None:
        self.asked += 1
        if self.fails:
            self.fails = False
            raise ValueError


def test_a_holder_that_fails_keeps_no_other_from_forgetting() -> None:
    watch = forgetting.Watch(tick_s=0.01)
    holders = [Holder(fails=True), Holder(fails=True)]
    for holder in holders * 2:
        watch.add(holder)
    assert soon(lambda: min(holder.asked for holder in holders) >= 2)


def test_being_watched_keeps_nothing_alive() -> None:
    watch = forgetting.Watch(tick_s=0.01)
    holders = [Holder(fails=False)]
    watch.add(holders[0])
    assert soon(lambda: holders[0].asked > 0)
    gone = weakref.ref(holders.pop())
    assert soon(lambda: gone() is None)


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true within some seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_a_cached_key_outlives_the_erasure_by_its_time_and_no_longer(world: World) -> None:
    vault = world.open(cache_s=60)
    sealed = vault.seal(SCOPE, "part", b"secret")
    world.erase()
    world.now_s += 60
    with pytest.raises(Gone):
        vault.open(SCOPE, "part", sealed)


def test_a_forgotten_key_is_gone_at_once(world: World) -> None:
    sealed = world.vault.seal(SCOPE, "part", b"secret")
    world.erase()
    world.vault.forget(SCOPE)
    world.vault.forget(SCOPE)
    for use in (
        lambda: world.vault.open(SCOPE, "part", sealed),
        lambda: world.vault.seal(SCOPE, "part", b""),
        lambda: world.vault.fingerprint(SCOPE, "part", b""),
        lambda: world.vault.store(SCOPE, "part", b"x" * 100_000),
    ):
        with pytest.raises(Gone):
            use()
    assert world.blobs.stored == {}


def test_a_key_read_before_the_erasure_is_not_cached_after_it(world: World) -> None:
    """Another thread forgets the scope while this one unwraps."""
    vault = world.open()
    unwrap = world.keyring.unwrap

    def slow(wrapped: bytes, context: Mapping[str, str]) -> bytes:
        key = unwrap(wrapped, context)
        world.erase()
        vault.forget(SCOPE)
        return key

    world.keyring.unwrap = slow  # type: ignore[method-assign]
    sealed = vault.seal(SCOPE, "part", b"secret")
    world.keyring.unwrap = unwrap  # type: ignore[method-assign]
    with pytest.raises(Gone):
        vault.open(SCOPE, "part", sealed)


def test_the_cache_keeps_the_keys_in_use(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHED_KEYS", 3)
    scopes = [stream_scope("acme", f"s-{number}") for number in range(4)]
    vault = world.open()
    for scope in scopes:
        vault.ensure_key(scope)
        vault.seal(scope, "part", b"")
        vault.seal(scopes[0], "part", b"")
    assert list(vault._keys)[-1] == scopes[0]
    assert len(vault._keys) == 3


@pytest.mark.parametrize("size", [0, 1, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, 300_000])
def test_a_payload_is_inline_up_to_the_limit_and_a_blob_beyond(world: World, size: int) -> None:
    data = b"x" * size
    stored = world.vault.store(SCOPE, "part", data)
    assert (stored.blob_key is not None) == (size > INLINE_MAX_BYTES)
    assert (stored.inline == b"") == (size > INLINE_MAX_BYTES)
    assert stored.size_bytes == size
    assert world.open().load(SCOPE, "part", stored) == data
    with pytest.raises(IntegrityError):
        world.vault.load(SCOPE, "another part", stored)
    world.vault.discard(stored)
    world.vault.discard(stored)
    assert world.blobs.stored == {}
    if stored.blob_key is not None:
        with pytest.raises(Gone):
            world.vault.load(SCOPE, "part", stored)


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=2))
def test_payloads_survive_the_round_trip(data: bytes, times: int) -> None:
    world = World()
    payload = data * (1000 if times == 2 else times)
    assert world.open().load(SCOPE, "part", world.vault.store(SCOPE, "part", payload)) == payload


def test_a_blob_in_another_s_place_does_not_open(world: World) -> None:
    one = world.vault.store(SCOPE, "op/1/payload", b"1" * 100_000)
    two = world.vault.store(SCOPE, "op/2/payload", b"2" * 100_000)
    swapped = Stored(b"", two.blob_key, one.size_bytes)
    with pytest.raises(IntegrityError):
        world.vault.load(SCOPE, "op/1/payload", swapped)


def test_two_attempts_at_one_payload_do_not_meet(world: World) -> None:
    data = b"x" * 100_000
    stored = [world.vault.store(SCOPE, "part", data) for _ in range(2)]
    world.vault.discard(stored[0])
    assert world.vault.load(SCOPE, "part", stored[1]) == data


def test_an_unknown_scope_is_gone(world: World) -> None:
    with pytest.raises(Gone):
        world.vault.seal(stream_scope("acme", "never"), "part", b"")
