"""An answer is as long as its request makes it: a byte more is not read into memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Connection, Wanted, unix_connector
from tensafe_gpu.helora.direct import layout_of
from tensafe_gpu.helora.frames import TO_KEY_HOLDER, Kind
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.ports import GARBAGE, HeUnavailable
from tests.support.helora import QUICK, TENANT, adapter_holder, peft_files, policy
from tests.support.tap import Tap

D, RANK, TOKENS = 64, 8, 3
OUT = "model.layers.0.self_attn.o"
X = np.ones((TOKENS, D), dtype=np.float32)
Asking = Callable[[RemoteKeyHolder], object]
CASES: dict[Kind, tuple[int, Asking]] = {
    Kind.B_REPLY: (2 + 4 * D * RANK, RemoteKeyHolder.b_matrices),
    Kind.ACCEPTED: (0, lambda private: private.prepare(OUT)),
    Kind.BLOCK_REPLY: (16 + 4 * RANK * 2 * 3 * N, lambda private: private.prepare(OUT)),
    Kind.PRODUCTS_REPLY: (4 * TOKENS * RANK, lambda private: private.products([(OUT, X)])),
    Kind.DIRECT_REPLY: (
        4 * TOKENS * layout_of(D, RANK).groups * 2 * 3 * N,
        lambda private: private.direct_products([(OUT, X)]),
    ),
    Kind.ERROR: (4096, lambda private: private.direct_products([(OUT, np.repeat(X, 50, axis=0))])),
}
"""The bytes of each answer, and what asks for it; the last is beyond the budget."""


@pytest.mark.parametrize("kind", CASES)
def test_an_answer_that_claims_a_byte_too_many_ends_its_connection_at_once(
    tmp_path: Path, kind: Kind
) -> None:
    """The byte never comes: whoever made room for it and waited would say that it took too long."""
    (size, asking), budget = CASES[kind], policy(tokens_per_site=100 if kind is Kind.ERROR else 10_000)
    with adapter_holder(tmp_path / "h") as holder, closing(BurnLog(tmp_path / "burned.db")) as burn_log:
        files = peft_files(D, RANK, leaves=("o",))
        holder.store.publish("a", files, base_model="base", policy=budget)
        tap, wanted = Tap(tmp_path / "tap", holder.socket), Wanted(TENANT, "a")
        with closing(RemoteKeyHolder(unix_connector(tmp_path / "tap"), wanted, burn_log, QUICK)) as private:
            if kind is Kind.PRODUCTS_REPLY:
                private.prepare(OUT)
            tap.claimed = {kind: size + 1}
            with pytest.raises(HeUnavailable, match=f"{size + 1} bytes.*at most {size}") as raised:
                asking(private)
            assert raised.value.code == GARBAGE
            used = private._offline if kind in (Kind.ACCEPTED, Kind.BLOCK_REPLY) else private._online
            assert used is not None
            assert not used.usable
            tap.claimed = {kind: size} if kind is not Kind.ERROR else {}
            private.connect_again()
            if kind is not Kind.ERROR:
                asking(private)
        tap.close()


def test_a_greeting_has_a_limit_too_and_another_kind_than_the_answer_has_none(tmp_path: Path) -> None:
    with adapter_holder(tmp_path / "h") as holder:
        holder.store.publish("a", peft_files(D, RANK), base_model="base", policy=policy())
        tap, wanted = Tap(tmp_path / "tap", holder.socket), Wanted(TENANT, "a")
        connector = unix_connector(tmp_path / "tap")
        tap.claimed = {Kind.WELCOME: TO_KEY_HOLDER[Kind.WELCOME] + 1}
        with pytest.raises(HeUnavailable, match="at most") as raised:
            Connection(connector, wanted, QUICK)
        assert raised.value.code == GARBAGE
        tap.claimed = {}
        with closing(Connection(connector, wanted, QUICK)) as greeted:
            with pytest.raises(HeUnavailable, match="kind 4 is not expected") as raised:
                greeted.ask(Kind.B_REQUEST, [bytes(2)], Kind.PRODUCTS_REPLY, 1 << 20, 5)
            assert raised.value.code == GARBAGE
            assert not greeted.usable
        tap.close()
