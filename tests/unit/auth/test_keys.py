"""API keys: what they are made of, what is stored of them, and when they stop being accepted."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.auth import keys as module
from tensafe.auth.keys import ApiKeys
from tensafe.auth.principal import AccessScope, Principal, check_tenant, parse_scope
from tensafe.contracts.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from tensafe.storage.ports import Items
from tests.fakes import MemoryItems


class World:
    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0
        self.items = MemoryItems(clock=lambda: self.now_s)
        self.keys = self.open()

    def open(self, items: Items | None = None) -> ApiKeys:
        """Another process's view."""
        return ApiKeys(items or self.items, clock=lambda: self.now_s)


@pytest.fixture
def world() -> World:
    return World()


def _refused(keys: ApiKeys, presented: str | None) -> str:
    with pytest.raises(Unauthenticated) as caught:
        keys.authenticate(presented)
    return f"{caught.value.code} {caught.value.message} {caught.value.field}"


def test_a_key_is_accepted_for_its_tenant_and_scopes(world: World) -> None:
    key, record = world.keys.create("acme", ["train", "sample", "train"], label="laptop")
    principal = world.open().authenticate(key)
    assert principal == Principal("acme", frozenset({AccessScope.TRAIN, AccessScope.SAMPLE}), record.key_id)
    assert record.scopes == (AccessScope.SAMPLE, AccessScope.TRAIN)


def test_a_key_looks_as_it_should_and_holds_over_192_random_bits(world: World) -> None:
    found = [world.keys.create("acme", ["train"])[0] for _ in range(200)]
    secrets_ = []
    for key in found:
        form = re.fullmatch(r"tml-([0-9a-f]{16})-([A-Za-z0-9_-]{43})", key)
        assert form is not None
        assert key.isascii()
        secrets_.append(base64.urlsafe_b64decode(form[2] + "="))
    assert {len(secret) for secret in secrets_} == {32}
    assert len(set(secrets_)) == 200
    # Each of the 256 bits is set in about half of 200 keys: five standard deviations are 35.
    for bit in range(256):
        ones = sum(secret[bit // 8] >> bit % 8 & 1 for secret in secrets_)
        assert abs(ones - 100) < 5 * math.sqrt(200) / 2, bit


def test_the_randomness_is_the_system_s(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = module.secrets.token_urlsafe

    def token(size: int) -> str:
        asked.append(size)
        return real(size)

    monkeypatch.setattr(module.secrets, "token_urlsafe", token)
    world.keys.create("acme", ["train"])
    assert asked == [32]


def test_only_a_hash_is_stored(world: World) -> None:
    key, _ = world.keys.create("acme", ["train"])
    secret = key.split("-", 2)[2]
    stored = repr(world.items._stored)
    assert secret not in stored
    assert key not in stored
    assert hashlib.sha256(secret.encode()).hexdigest() in stored


def test_the_comparison_takes_constant_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare(one: str, two: str) -> bool:
        compared.append((one, two))
        return hmac.compare_digest(one, two)

    monkeypatch.setattr(module, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    key, record = world.keys.create("acme", ["train"])
    world.keys.authenticate(key)
    _refused(world.keys, f"tml-{record.key_id}-{'A' * 43}")
    _refused(world.keys, f"tml-{'0' * 16}-{'A' * 43}")
    # An unknown id is compared too, so that its time does not tell it from a known one.
    assert len(compared) == 3
    assert {len(text) for pair in compared for text in pair} == {64}


def test_a_key_expires(world: World) -> None:
    key, record = world.keys.create("acme", ["train"], lifetime_s=60)
    assert record.expires_s == int(world.now_s) + 60
    world.now_s += 59
    assert world.keys.authenticate(key).tenant == "acme"
    world.now_s += 1
    for keys in (world.keys, world.open()):
        if keys is world.keys:
            world.now_s += 0.5  # what this one has seen a moment ago
        assert "unauthenticated" in _refused(keys, key)


@pytest.mark.parametrize("lifetime_s", [0, -1])
def test_a_lifetime_is_positive(world: World, lifetime_s: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        world.keys.create("acme", ["train"], lifetime_s=lifetime_s)
    assert caught.value.field == "lifetime_s"


def test_a_revoked_key_is_refused_at_once_here_and_within_a_second_elsewhere(world: World) -> None:
    key, record = world.keys.create("acme", ["train"])
    elsewhere = world.open()
    for keys in (world.keys, elsewhere):
        keys.authenticate(key)
    world.keys.revoke(record.key_id)
    _refused(world.keys, key)
    _refused(world.open(), key)
    for _ in range(10):
        world.now_s += 0.1
        try:
            elsewhere.authenticate(key)
        except Unauthenticated:
            break
    else:
        raise AssertionError("accepted a second after its revocation")


def test_asking_often_does_not_keep_a_revoked_key_alive(world: World) -> None:
    key, record = world.keys.create("acme", ["train"])
    elsewhere = world.open()
    elsewhere.authenticate(key)
    world.keys.revoke(record.key_id)
    accepted = 0
    for _ in range(100):
        world.now_s += 0.01
        try:
            elsewhere.authenticate(key)
            accepted += 1
        except Unauthenticated:
            continue
    assert accepted <= 50


def test_a_clock_that_goes_back_keeps_no_revoked_key_alive(world: World) -> None:
    key, record = world.keys.create("acme", ["train"])
    elsewhere = world.open()
    elsewhere.authenticate(key)
    world.keys.revoke(record.key_id)
    world.now_s -= 3600
    _refused(elsewhere, key)


def test_revoking_while_another_process_authenticates(world: World) -> None:
    """The key was read before the revocation and is remembered after it: for half a second."""
    key, record = world.keys.create("acme", ["train"])

    class Revoking:
        def __getattr__(self, name: str) -> Callable[..., object]:
            return getattr(world.items, name)

        def get(self, wanted: object) -> object:
            found = world.items.get(wanted)  # type: ignore[arg-type]
            world.keys.revoke(record.key_id)
            return found

    slow = world.open(Revoking())  # type: ignore[arg-type]
    slow.authenticate(key)
    world.now_s += 0.5
    _refused(slow, key)


def test_revoking_twice_is_revoking(world: World) -> None:
    _, record = world.keys.create("acme", ["train"])
    first = world.keys.revoke(record.key_id)
    world.now_s += 100
    assert world.keys.revoke(record.key_id) == first


@pytest.mark.parametrize("key_id", ["0" * 16, "", "no such", "../../x", "a\nb", "x" * 600])
def test_revoking_what_is_no_key_is_not_found(world: World, key_id: str) -> None:
    with pytest.raises(NotFound):
        world.keys.revoke(key_id)


def test_every_refusal_reads_the_same(world: World) -> None:
    """Unknown, malformed, expired, revoked, too long: nobody learns which."""
    key, record = world.keys.create("acme", ["train"])
    revoked, gone = world.keys.create("acme", ["train"])
    world.keys.revoke(gone.key_id)
    expired, _ = world.keys.create("acme", ["train"], lifetime_s=1)
    world.now_s += 2
    prefix, secret = key[: 4 + 16 + 1], key.split("-", 2)[2]
    presented = [
        None,
        "",
        "tml-",
        "tml-x",
        "Bearer " + key,
        key[:-1],
        key + "A",
        key.upper(),
        key + "\n",
        "\n" + key,
        " " + key,
        key.replace("tml-", "sk-"),
        f"tml-{'0' * 16}-{secret}",
        prefix + "A" * 43,
        prefix + "é" * 43,
        f"tml-{record.key_id}-{hashlib.sha256(secret.encode()).hexdigest()[:43]}",
        "tml-" + "0" * 10_000_000,
        "\0" * 64,
        revoked,
        expired,
    ]
    assert len({_refused(world.keys, one) for one in presented}) == 1
    assert world.keys.authenticate(key).tenant == "acme"


def test_a_very_long_key_reaches_neither_store_nor_pattern(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FORM", None)
    _refused(world.open(None), "tml-" + "0" * 253)


@given(st.text(max_size=300))
def test_auth_01_arbitrary_bearer_tokens_are_refused(presented: str) -> None:
    """AUTH-01: the earlier system accepted any bearer token."""
    world = World()
    world.keys.create("acme", ["admin"])
    assert "unauthenticated" in _refused(world.keys, presented)


@given(st.from_regex(r"tml-[0-9a-f]{16}-[A-Za-z0-9_-]{43}", fullmatch=True))
def test_auth_01_well_formed_tokens_that_nobody_issued_are_refused(presented: str) -> None:
    world = World()
    world.keys.create("acme", ["admin"])
    assert "unauthenticated" in _refused(world.keys, presented)


@given(st.integers(min_value=0, max_value=62), st.integers(min_value=1, max_value=63))
def test_auth_01_a_key_with_one_wrong_character_is_refused(place: int, shift: int) -> None:
    world = World()
    key, _ = world.keys.create("acme", ["admin"])
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    place = place % len(key)
    wrong = alphabet[(alphabet.find(key[place]) + shift) % 64]
    altered = key[:place] + wrong + key[place + 1 :]
    if altered != key:
        _refused(world.keys, altered)


def test_a_key_without_a_scope_may_not_what_it_is_for(world: World) -> None:
    key, _ = world.keys.create("acme", ["sample"])
    principal = world.keys.authenticate(key)
    principal.require(AccessScope.SAMPLE)
    for scope in (AccessScope.TRAIN, AccessScope.ADMIN, AccessScope.AUDIT):
        with pytest.raises(Forbidden, match=scope.value):
            principal.require(scope)


def test_admin_includes_the_others(world: World) -> None:
    key, _ = world.keys.create("acme", ["admin"])
    for scope in AccessScope:
        world.keys.authenticate(key).require(scope)


@pytest.mark.parametrize("scope", ["", "Train", "train ", "root", "*"])
def test_unknown_scopes_are_refused(world: World, scope: str) -> None:
    with pytest.raises(InvalidRequest, match="admin, train, sample, audit"):
        parse_scope(scope)
    with pytest.raises(InvalidRequest):
        world.keys.create("acme", ["train", scope])
    assert world.keys.list() == []


def test_a_key_needs_a_scope(world: World) -> None:
    with pytest.raises(InvalidRequest) as caught:
        world.keys.create("acme", [])
    assert caught.value.field == "scope"


@pytest.mark.parametrize("tenant", ["a", "0", "acme", "team-7", "a" * 63, "a-"])
def test_tenants_that_are_good(tenant: str) -> None:
    assert check_tenant(tenant) == tenant


@pytest.mark.parametrize(
    "tenant", ["", "-a", "A", "acme_x", "a/b", "a b", "acme\n", "ä", "a" * 64, "..", "a.b", "٣", "tenant:x"]
)
def test_tenants_that_are_not(world: World, tenant: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_tenant(tenant)
    assert caught.value.field == "tenant"
    with pytest.raises(InvalidRequest):
        world.keys.create(tenant, ["train"])


def test_keys_are_listed_without_their_secrets_for_their_tenant(world: World) -> None:
    mine = {world.keys.create("acme", ["train"])[1].key_id for _ in range(3)}
    theirs = {world.keys.create(name, ["train"])[1].key_id for name in ("acme-2", "acm", "rival")}
    assert {record.key_id for record in world.keys.list("acme")} == mine
    assert {record.key_id for record in world.keys.list()} == mine | theirs
    assert "sha256" not in repr(world.keys.list())


def test_the_memory_of_accepted_keys_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(50):
        key, _ = world.keys.create("acme", ["train"])
        world.keys.authenticate(key)
    assert len(world.keys._cache) == 50
    assert not any(key.split("-", 2)[2] in repr(world.keys._cache) for key in [key])
    for number in range(10_050):
        world.keys._cache[str(number)] = (world.now_s, Principal("acme", frozenset(), "x"))
    key, _ = world.keys.create("acme", ["train"])
    world.keys.authenticate(key)
    assert len(world.keys._cache) == 1
