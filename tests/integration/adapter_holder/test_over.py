"""An adapter that is revoked or rotated while it is used: not answered any more, and gone from memory."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tensafe.vault.forgetting import TICK_S
from tensafe_gpu.adapter_holder import opened as opened_module
from tensafe_gpu.adapter_holder.listener import Patience
from tensafe_gpu.adapter_holder.opened import KEEP_S, Shelf
from tensafe_gpu.helora.accepted_records import Offer, Range
from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Wanted, unix_connector
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.ports import HOLDER_ABSENT, NOT_ALLOWED, VERSION_MISMATCH, HeUnavailable
from tensafe_gpu.sampler.private.connecting import connect
from tests.support.helora import QUICK, TENANT, Holder, adapter_holder, peft_files, policy
from tests.support.holder_process import HolderProcess

D, RANK = 64, 8
OUT = "model.layers.0.self_attn.o"
LOOK_S = 0.1
X = np.ones((1, D), dtype=np.float32)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    with adapter_holder(tmp_path / "holder", patience=Patience(look_s=LOOK_S)) as holder:
        for seed, name in enumerate("ab"):
            files = peft_files(D, RANK, leaves=("o",), seed=seed)
            holder.store.publish(name, files, base_model="base", policy=policy())
        yield holder


def until(done: Callable[[], bool], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(*found: weakref.ref[object]) -> bool:
    gc.collect()
    return all(one() is None for one in found)


@pytest.mark.parametrize(("end", "code"), [("revoke", NOT_ALLOWED), ("rotate", VERSION_MISMATCH)])
def test_what_is_over_leaves_memory_though_its_connections_stand(
    holder: Holder, burn_log: BurnLog, end: str, code: str
) -> None:
    """One that has asked for products, and one that has begun a block and says nothing more."""
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    private.products([(OUT, X)])
    (opened,) = holder.service.shelf._opened.values()
    weights = [
        weakref.ref(opened),
        weakref.ref(opened.adapter.sites[OUT].a),
        weakref.ref(opened.columns(OUT)),
    ]
    del opened
    getattr(holder.store, end)("a")
    holder.service.shelf.forget_stale()
    assert list(holder.service.shelf._opened) == []
    until(lambda: gone(*weights))
    until(lambda: not holder.service.places._of_tenant)  # and both connections have ended
    with pytest.raises(HeUnavailable) as raised:
        private.products([(OUT, X)])
    assert raised.value.code == HOLDER_ABSENT
    with pytest.raises(HeUnavailable) as raised:
        private.connect_again()
    assert raised.value.code == code
    private.close()


def test_a_connection_that_goes_on_asking_is_told_once_and_ended(holder: Holder, burn_log: BurnLog) -> None:
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    holder.store.revoke("a")
    holder.service.forget_what_was_looked_up()
    with pytest.raises(HeUnavailable) as raised:
        private.products([(OUT, X)])
    assert raised.value.code == NOT_ALLOWED
    until(lambda: not private.connected())
    private.close()


def test_a_pass_right_after_its_weights_were_dropped_hears_why(tmp_path: Path, burn_log: BurnLog) -> None:
    """Though the last look at the store, of less than half a second ago, found the adapter active."""
    with adapter_holder(tmp_path / "h", patience=Patience(look_s=60)) as holder:
        files = peft_files(D, RANK, leaves=("o",))
        holder.store.publish("a", files, base_model="base", policy=policy())
        private = holder.key_holder(burn_log)
        private.prepare(OUT)
        private.products([(OUT, X)])
        holder.store.revoke("a")
        holder.service.shelf.forget_stale()
        with pytest.raises(HeUnavailable) as raised:
            private.products([(OUT, X)])
        assert raised.value.code == NOT_ALLOWED
        private.close()


@pytest.mark.parametrize("accepted", [False, True], ids=["before-it-is-accepted", "after"])
@pytest.mark.parametrize(("end", "code"), [("revoke", NOT_ALLOWED), ("rotate", VERSION_MISMATCH)])
def test_a_pass_that_was_on_its_way_hears_why(
    holder: Holder, burn_log: BurnLog, monkeypatch: pytest.MonkeyPatch, end: str, code: str, accepted: bool
) -> None:
    """Its block has gone by then, or its weights."""
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    accept = holder.service.accepted.accept

    def meanwhile(offer: Offer, ranges: Sequence[Range]) -> list[bytes]:
        salts = accept(offer, ranges) if accepted else []
        getattr(holder.store, end)("a")
        holder.service.shelf.forget_stale()
        return salts or accept(offer, ranges)

    monkeypatch.setattr(holder.service.accepted, "accept", meanwhile)
    with pytest.raises(HeUnavailable) as raised:
        private.products([(OUT, X)])
    assert raised.value.code == code
    private.close()


def test_an_adapter_holder_that_says_another_digest_ends_no_epoch_here(
    holder: Holder, tmp_path: Path
) -> None:
    """Else whoever greets under somebody's digest would end that adapter's blocks at this sampler."""
    given = {
        "address": f"unix:{holder.socket}", "tenant": TENANT, "adapter": "a", "version": "1",
        "burn_log": str(tmp_path / "its.db"),
    }  # fmt: skip
    for digest, known in ((holder.store.get("b", 1).digest, 0), (holder.store.get("a", 1).digest, 1)):
        connect({**given, "digest": digest}).close()
        with closing(sqlite3.connect(tmp_path / "its.db")) as read:
            assert read.execute("SELECT count(*) FROM epochs").fetchone() == (known,)


def test_only_so_much_is_open_at_once(
    holder: Holder, burn_log: BurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = holder.service.shelf
    first = holder.key_holder(burn_log)
    (name,) = shelf._opened
    size = shelf._opened[name].size_bytes
    monkeypatch.setattr(opened_module, "MAX_OPENED_BYTES", size * 3 // 2)
    with pytest.raises(HeUnavailable, match="memory") as raised:
        holder.key_holder(burn_log, adapter="b")
    assert raised.value.code == HOLDER_ABSENT
    first.close()
    until(lambda: name in shelf._idle_since)
    second = holder.key_holder(burn_log, adapter="b")
    assert [one[0] for one in shelf._opened] == ["b"]
    second.close()
    until(lambda: bool(shelf._idle_since))
    monkeypatch.setattr(opened_module, "MAX_OPENED_BYTES", 1)  # one is always opened
    holder.key_holder(burn_log).close()


def test_what_nobody_uses_is_closed_after_a_while(holder: Holder) -> None:
    now = [0.0]
    shelf = Shelf(holder.store, holder.service.accepted, clock=lambda: now[0])
    one = shelf.take(("a", 1, 1))
    assert shelf.take(("a", 1, 1)) is one
    shelf.give_back(one)
    now[0] += KEEP_S
    shelf.forget_stale()
    assert not one.closed
    shelf.give_back(one)
    assert shelf.take(("a", 1, 1)) is one  # for who comes again
    shelf.give_back(one)
    now[0] += KEEP_S
    shelf.forget_stale()
    assert one.closed
    assert not shelf._opened
    assert not shelf._users
    assert not shelf._idle_since


@pytest.mark.slow
def test_a_revocation_during_a_generation_ends_it(tmp_path: Path, burn_log: BurnLog) -> None:
    """In another process, as an operator does it: the next pass but for half a second is refused."""
    peft = tmp_path / "peft"
    peft.mkdir()
    for name, content in peft_files(D, RANK, leaves=("o",)).items():
        (peft / name).write_bytes(content)
    process = HolderProcess(tmp_path / "h")
    process.publish("a", peft, base_model="base", tenant=TENANT, tokens_per_site=10**6)
    private = RemoteKeyHolder(unix_connector(process.socket), Wanted(TENANT, "a"), burn_log, QUICK)
    idle = RemoteKeyHolder(unix_connector(process.socket), Wanted(TENANT, "a"), burn_log, QUICK)
    for _ in range(2):
        private.prepare(OUT)
    answered, codes = [time.monotonic()], []

    def generate() -> None:
        try:
            while True:
                private.products([(OUT, X)])
                answered.append(time.monotonic())
                time.sleep(0.003)
        except HeUnavailable as error:
            codes.append(error.code)

    thread = threading.Thread(target=generate)
    thread.start()
    until(lambda: len(answered) > 20)
    process.command("revoke", "--name", "a")
    revoked = time.monotonic()
    thread.join(10)
    # The other one of a pass that was on its way as its block was dropped: then who greets again hears it.
    assert codes in ([NOT_ALLOWED], [VERSION_MISMATCH])
    assert answered[-1] < revoked + 1.0
    until(lambda: '"reason":"revoked"' in process.log.read_text(), TICK_S + 5)
    until(lambda: not idle._online.usable, 2 * TICK_S + 5)
    with pytest.raises(HeUnavailable) as raised:
        RemoteKeyHolder(unix_connector(process.socket), Wanted(TENANT, "a"), burn_log, QUICK)
    assert raised.value.code == NOT_ALLOWED
    for one in (private, idle):
        one.close()
    process.kill()
