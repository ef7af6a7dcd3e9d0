"""A key holder burns the indices of all sites of a forward pass together, and never too late."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tensafe.contracts.errors import Unavailable
from tensafe_gpu.helora.accepted import AcceptLog
from tensafe_gpu.helora.accepted_records import Epoch
from tensafe_gpu.helora.burned import RESERVE, BurnLog
from tensafe_gpu.helora.exchange import POLL_S, Exchange, gather
from tensafe_gpu.helora.ports import NOT_PREPARED, HeUnavailable
from tests.support.helora import TENANT, Holder, PlainReference, peft_files, policy

D, RANK, STEP = 64, 8, 3
SITES = "model.layers.0.self_attn.qkv", "model.layers.0.self_attn.o", "model.layers.1.self_attn.o"
USED = 2 * RESERVE + 100


class Calls:
    """A method that is counted and done."""

    def __init__(self, owner: Any, name: str) -> None:
        self.count, self._done = 0, getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        return self._done(*arguments)


def test_a_reserve_of_all_sites_is_one_write_of_the_key_holder(holder: Holder, burn_log: BurnLog) -> None:
    files = peft_files(D, RANK, layers=2)
    _, adapter = holder.store.publish("a", files, base_model="base", policy=policy(10**6))
    plain, private = PlainReference(adapter), holder.key_holder(burn_log)
    for site in SITES:
        private.prepare(site)
    blocks = {site: private._supplies[site]._cursors[0].block.block_id for site in SITES}
    burns, writes = Calls(burn_log, "burn"), Calls(holder.service.accepted._items, "write")
    rng = np.random.default_rng(0)
    for used in range(STEP, USED, STEP):
        x = rng.standard_normal((STEP, D)).astype(np.float32)
        for number, site in enumerate(SITES):
            (products,) = private.products([(site, x)])
            assert np.array_equal(products, plain.products([(site, x)])[0])
            # What anybody would find now, were both killed here.
            assert burn_log.burned(blocks[site]) >= used
            stored = holder.service.accepted._items.get(Epoch("a", 1, 1).block(blocks[site]))
            assert stored is not None
            assert int(stored.body["until"]) >= used  # type: ignore[arg-type]
            assert AcceptLog(holder.service.accepted._items).spent("a", 1, 1)[site][TENANT] >= used
            assert number or burn_log.burned(blocks[SITES[-1]]) >= used
    assert burns.count == 3  # one for each reserve, of all sites
    assert writes.count == 3 * len(SITES)  # what others' blocks are for is not known there
    assert {burn_log.burned(block) for block in blocks.values()} == {3 * RESERVE}
    private.close()


@pytest.mark.parametrize(
    ("error", "told"), [(Unavailable("full"), HeUnavailable), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_burn_ahead_that_fails_drops_the_masks_of_every_site(
    holder: Holder, burn_log: BurnLog, error: BaseException, told: type[BaseException]
) -> None:
    holder.store.publish("a", peft_files(D, RANK, layers=2), base_model="base", policy=policy())
    private = holder.key_holder(burn_log)
    for site in SITES:
        private.prepare(site)
    x = np.ones((1, D), dtype=np.float32)
    with mock.patch.object(burn_log, "burn", side_effect=error), pytest.raises(told):
        private.products([(SITES[0], x)])
    assert set(private.prepared().values()) == {0}
    with pytest.raises(HeUnavailable) as raised:
        private.products([(SITES[1], x)])
    assert raised.value.code == NOT_PREPARED
    private.close()


def test_both_parties_on_one_core_give_it_up_at_once(
    holder: Holder, burn_log: BurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder.store.publish("a", peft_files(D, RANK, layers=2), base_model="base", policy=policy())
    looks, look = [], Exchange.advance
    monkeypatch.setattr(Exchange, "advance", lambda *args, **named: looks.append(1) or look(*args, **named))
    cores, x = os.sched_getaffinity(0), np.ones((1, D), dtype=np.float32)
    for mine, poll_s in (({min(cores)}, 0.0), (cores, POLL_S if len(cores) > 1 else 0.0)):
        os.sched_setaffinity(0, mine)
        try:
            private = holder.key_holder(burn_log)
            private.prepare(SITES[0])
            looks.clear()
            asked = private.ask([(SITES[0], x)])
            assert asked.poll_s == poll_s
            gather([asked])
            assert asked.answers()[0].any()
            assert poll_s or len(looks) == 2  # to send, and when there is something to receive
        finally:
            os.sched_setaffinity(0, cores)
            private.close()
