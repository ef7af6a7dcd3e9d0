"""A key holder and an adapter holder over a unix socket: exact products, metering, restarts, epochs."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.exchange import gather
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.ports import (
    BUDGET_SPENT,
    HOLDER_ABSENT,
    NOT_ALLOWED,
    NOT_PREPARED,
    STATE_FAILED,
    VERSION_MISMATCH,
    HeUnavailable,
)
from tensafe_gpu.sampler.private.connecting import connect
from tests.support.helora import Holder, PlainReference, adapter_holder, peft_files, policy

D, RANK = 64, 8
QKV, OUT = "model.layers.0.self_attn.qkv", "model.layers.0.self_attn.o"


def publish(holder: Holder, **changed: object) -> PlainReference:
    settings = policy(**changed)
    _, adapter = holder.store.publish("a", peft_files(D, RANK), base_model="base", policy=settings)
    return PlainReference(adapter)


def tokens(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)


def code_of(raised: pytest.ExceptionInfo[HeUnavailable]) -> str:
    return raised.value.code


def test_products_equal_the_plain_integers_bit_for_bit(holder: Holder, burn_log: BurnLog) -> None:
    plain = publish(holder)
    private = holder.key_holder(burn_log)
    assert private.info() == plain.info()
    for site, matrices in plain.b_matrices().items():
        for module, b in matrices.items():
            assert np.array_equal(private.b_matrices()[site][module], b)
    for site in (QKV, OUT):
        private.prepare(site)
    for count in (1, 5, 300):
        request = [(QKV, tokens(count)), (OUT, 1e3 * tokens(count, 2))]
        for mine, theirs in zip(private.products(request), plain.products(request), strict=True):
            assert mine.dtype == np.float32
            assert np.array_equal(mine, theirs)
    assert private.prepared() == {QKV: N - 306, OUT: N - 306}
    zero = np.zeros((2, D), dtype=np.float32)
    assert not private.products([(QKV, zero)])[0].any()
    private.close()


def test_a_request_may_span_blocks(holder: Holder, burn_log: BurnLog) -> None:
    plain = publish(holder)
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    private.prepare(OUT)
    first = [(OUT, tokens(N - 3))]
    second = [(OUT, tokens(10, 3)), (OUT, tokens(2, 4))]
    for request in (first, second):
        for mine, theirs in zip(private.products(request), plain.products(request), strict=True):
            assert np.array_equal(mine, theirs)
    assert private.prepared()[OUT] == 2 * N - (N - 3) - 12
    private.close()


def test_more_tokens_than_are_prepared_use_none(holder: Holder, burn_log: BurnLog) -> None:
    publish(holder)
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    with pytest.raises(HeUnavailable) as raised:
        private.products([(OUT, tokens(1)), (QKV, tokens(1))])
    assert code_of(raised) == NOT_PREPARED
    assert private.prepared() == {QKV: 0, OUT: N}
    private.close()


def test_the_budget_is_all_tenants_together_and_survives_a_restart(tmp_path: Path, burn_log: BurnLog) -> None:
    with adapter_holder(tmp_path / "holder") as holder:
        publish(holder, tokens_per_site=600, tenants=("tenant-1", "tenant-2"))
        one = holder.key_holder(burn_log)
        two = holder.key_holder(burn_log, tenant="tenant-2")
        for private in (one, two):
            private.prepare(OUT)
            private.products([(OUT, tokens(250))])
        with pytest.raises(HeUnavailable) as raised:
            one.products([(OUT, tokens(101))])
        assert code_of(raised) == BUDGET_SPENT
        one.products([(OUT, tokens(6))])
        assert holder.service.accepted.spent("a", 1, 1)[OUT] == {"tenant-1": 256, "tenant-2": 250}
        one.close()
        two.close()
    with adapter_holder(tmp_path / "holder") as holder:
        # What was reserved for tenant-2 counts: whether it was answered is not known after a crash.
        assert holder.service.accepted.spent("a", 1, 1)[OUT] == {"tenant-1": 256, "tenant-2": 256}
        again = holder.key_holder(burn_log)
        again.prepare(OUT)
        with pytest.raises(HeUnavailable) as raised:
            again.products([(OUT, tokens(89))])
        assert code_of(raised) == BUDGET_SPENT
        again.products([(OUT, tokens(88))])
        with pytest.raises(HeUnavailable) as raised:
            again.prepare(OUT)
        assert code_of(raised) == BUDGET_SPENT
        again.close()


def test_a_key_holder_outlives_a_restart_of_the_adapter_holder(tmp_path: Path, burn_log: BurnLog) -> None:
    with adapter_holder(tmp_path / "holder") as holder:
        plain = publish(holder)
        private = holder.key_holder(burn_log)
        private.prepare(OUT)
        private.products([(OUT, tokens(10))])
    with pytest.raises(HeUnavailable):
        private.products([(OUT, tokens(10))])
    with adapter_holder(tmp_path / "holder"):
        request = [(OUT, tokens(10, 5))]
        with pytest.raises(HeUnavailable) as raised:  # a forward pass would wait for the greeting
            private.products(request)
        assert code_of(raised) == HOLDER_ABSENT
        assert not private.connected()
        private.connect_again()
        assert private.connected()
        assert np.array_equal(private.products(request)[0], plain.products(request)[0])
        # The rest of the range that was reserved on both sides is given up.
        assert private.prepared()[OUT] == N - 256 - 10
        private.close()


def test_a_new_epoch_ends_the_old_one(holder: Holder, burn_log: BurnLog) -> None:
    publish(holder)
    old = holder.key_holder(burn_log)
    old.prepare(OUT)
    old.b_matrices()
    before = old.info()
    assert holder.store.rotate("a").epoch == 2
    holder.service.forget_what_was_looked_up()
    with pytest.raises(HeUnavailable) as raised:
        old.products([(OUT, tokens(1))])
    assert code_of(raised) == VERSION_MISMATCH
    new = holder.key_holder(burn_log)
    assert new.info().epoch == 2
    assert new.info().digest != before.digest
    b_old, b_new = (one.b_matrices()[OUT][f"{OUT}_proj"] for one in (old, new))
    assert abs(float((b_old * b_new).sum() / np.linalg.norm(b_old) / np.linalg.norm(b_new))) < 0.5
    new.prepare(OUT)
    assert [of.number for of, _ in holder.service.accepted._known.blocks] == [2]
    plain = PlainReference(holder.store.load("a").adapter)
    x = tokens(3)
    assert np.array_equal(new.products([(OUT, x)])[0], plain.products([(OUT, x)])[0])
    old.close()
    new.close()


def test_a_sampler_s_log_of_used_indices_drops_the_epoch_before(holder: Holder, tmp_path: Path) -> None:
    publish(holder)
    where = {
        **{"address": f"unix:{holder.socket}", "tenant": "tenant-1", "adapter": "a", "version": "1"},
        "burn_log": str(tmp_path / "sampler-burned.db"),
    }
    old = connect(where)
    old.prepare(OUT)
    old.products([(OUT, tokens(1))])
    holder.store.rotate("a")
    holder.service.forget_what_was_looked_up()
    new = connect(where)
    new.prepare(OUT)
    new.products([(OUT, tokens(1))])
    with closing(sqlite3.connect(where["burn_log"])) as database:
        assert database.execute("SELECT epoch FROM burned").fetchall() == [(2,)]
    old.close()
    new.close()


def test_absent_revoked_and_foreign_adapters_look_alike(holder: Holder, burn_log: BurnLog) -> None:
    publish(holder)
    messages = set()
    for changed in ({"adapter": "b"}, {"tenant": "tenant-9"}):
        with pytest.raises(HeUnavailable) as raised:
            holder.key_holder(burn_log, **changed)
        messages.add((code_of(raised), str(raised.value)))
    holder.store.revoke("a")
    with pytest.raises(HeUnavailable) as raised:
        holder.key_holder(burn_log)
    messages.add((code_of(raised), str(raised.value)))
    assert len(messages) == 1
    assert messages.pop()[0] == NOT_ALLOWED


def test_a_copy_of_a_key_holder_burns_nothing_twice(holder: Holder, burn_log: BurnLog) -> None:
    publish(holder)
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    copy: RemoteKeyHolder = holder.key_holder(burn_log)
    # As after a fork: the same masks in two processes, with one log on the disk.
    copy._supplies[OUT].add(private._supplies[OUT]._cursors[0].block)
    private.products([(OUT, tokens(1))])
    with pytest.raises(HeUnavailable) as raised:
        copy.products([(OUT, tokens(1))])
    assert code_of(raised) == STATE_FAILED
    assert copy.prepared()[OUT] == 0
    private.close()
    copy.close()


def test_several_adapters_of_one_holder_are_asked_at_once(holder: Holder, burn_log: BurnLog) -> None:
    """Each has its own products, bit for bit; one whose budget is spent is refused by itself."""
    plain = {}
    for seed, name in enumerate("abc"):
        budget = policy(tokens_per_site=2 if name == "c" else 10)
        files = peft_files(D, RANK, seed=seed)
        plain[name] = PlainReference(holder.store.publish(name, files, base_model="base", policy=budget)[1])
    private = {name: holder.key_holder(burn_log, adapter=name) for name in plain}
    for one in private.values():
        one.prepare(OUT)
        one.prepare(QKV)
    request = [(OUT, tokens(3)), (QKV, tokens(2, 2))]
    asked = {name: one.ask(request) for name, one in private.items()}
    gather(list(asked.values()))
    with pytest.raises(HeUnavailable) as raised:
        asked.pop("c").answers()
    assert code_of(raised) == BUDGET_SPENT
    for name, round_ in asked.items():
        for mine, theirs in zip(round_.answers(), plain[name].products(request), strict=True):
            assert np.array_equal(mine, theirs)
    assert not np.array_equal(plain["a"].products(request)[0], plain["b"].products(request)[0])
    for name in "ab":  # and each connection goes on
        assert np.array_equal(
            private[name].products([(OUT, tokens(1))])[0], plain[name].products([(OUT, tokens(1))])[0]
        )
    for one in private.values():
        one.close()


def test_a_round_keeps_its_connection_until_it_is_answered(holder: Holder, burn_log: BurnLog) -> None:
    plain = publish(holder)
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    asked, other = private.ask([(OUT, tokens(2))]), []
    thread = threading.Thread(target=lambda: other.append(private.products([(OUT, tokens(1))])))
    thread.start()
    gather([asked])
    assert np.array_equal(asked.answers()[0], plain.products([(OUT, tokens(2))])[0])
    thread.join(5)
    assert np.array_equal(other[0][0], plain.products([(OUT, tokens(1))])[0])
    private.close()


def test_what_passes_before_a_round_is_waited_for_is_not_charged(holder: Holder, burn_log: BurnLog) -> None:
    plain = publish(holder)
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    asked = private.ask([(OUT, tokens(2))], limit_s=0.3)
    time.sleep(0.4)  # as a layer of a large model may take
    gather([asked])
    assert np.array_equal(asked.answers()[0], plain.products([(OUT, tokens(2))])[0])
    assert asked.took_s < 0.3
    private.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused(holder: Holder, burn_log: BurnLog, bad: float) -> None:
    publish(holder)
    private = holder.key_holder(burn_log)
    x = tokens(2)
    x[1, 3] = bad
    with pytest.raises(HeUnavailable, match="finite"):
        private.products([(OUT, x)])
    private.close()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_token_whose_products_leave_float32_has_infinite_ones_and_all_others_their_own(
    holder: Holder, burn_log: BurnLog
) -> None:
    plain = publish(holder)
    private = holder.key_holder(burn_log)
    private.prepare(OUT)
    x = tokens(3)
    x[1] = np.sign(holder.store.load("a").adapter.sites[OUT].a[0]) * np.finfo(np.float32).max
    for products in (private.products, private.direct_products):
        (got,) = products([(OUT, x)])
        assert np.isinf(got[1, 0])
        assert not np.isnan(got).any()
        assert np.isfinite(got[[0, 2]]).all()
        assert np.array_equal(got[[0, 2]], plain.products([(OUT, x[[0, 2]])])[0])
    assert private.prepared()[OUT] == N - 3
    private.products([(OUT, x[:1])])
    assert private.prepared()[OUT] == N - 4
    private.close()


def test_the_direct_mode_needs_nothing_prepared_and_is_metered(holder: Holder, burn_log: BurnLog) -> None:
    plain = publish(holder, tokens_per_site=5)
    private = holder.key_holder(burn_log)
    request = [(QKV, tokens(2)), (OUT, tokens(1, 2))]
    for mine, theirs in zip(private.direct_products(request), plain.products(request), strict=True):
        assert mine.dtype == np.float32
        assert np.array_equal(mine, theirs)
    assert holder.service.accepted.spent("a", 1, 1) == {QKV: {"tenant-1": 2}, OUT: {"tenant-1": 1}}
    with pytest.raises(HeUnavailable) as raised:
        private.direct_products([(QKV, tokens(4))])
    assert code_of(raised) == BUDGET_SPENT
    private.close()


def test_the_direct_mode_says_that_a_holder_has_gone(holder: Holder, burn_log: BurnLog) -> None:
    publish(holder)
    private = holder.key_holder(burn_log)
    private._online.close()
    holder.socket.unlink()
    with pytest.raises(HeUnavailable) as raised:
        private.direct_products([(OUT, tokens(1))])
    assert code_of(raised) == HOLDER_ABSENT
    private.close()
