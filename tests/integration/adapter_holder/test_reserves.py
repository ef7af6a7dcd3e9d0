"""Indices of all sites of a forward pass are reserved together, by either party, and never too late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tensafe.contracts.errors import Unavailable
from tensafe_gpu.helora.accepted import AcceptLog
from tensafe_gpu.helora.accepted_records import Epoch
from tensafe_gpu.helora.burned import RESERVE, BurnLog
from tensafe_gpu.helora.ports import HeUnavailable
from tests.support.helora import TENANT, Holder, PlainReference, adapter_holder, peft_files, policy

D, RANK, STEP = 64, 8, 3
SITES = "model.layers.0.self_attn.qkv", "model.layers.0.self_attn.o", "model.layers.1.self_attn.o"
USED = 2 * RESERVE + 100


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    with adapter_holder(tmp_path / "holder") as holder:
        yield holder


@pytest.fixture
def burn_log(tmp_path: Path) -> Iterator[BurnLog]:
    log = BurnLog(tmp_path / "burned.db")
    yield log
    log.close()


class Calls:
    """A method that is counted and done."""

    def __init__(self, owner: Any, name: str) -> None:
        self.count, self._done = 0, getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        return self._done(*arguments)


def test_a_reserve_of_all_sites_is_one_write_of_either_party(holder: Holder, burn_log: BurnLog) -> None:
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
    assert writes.count == len(SITES) + 2  # an adapter holder learns in the first pass which sites are used
    assert {burn_log.burned(block) for block in blocks.values()} == {3 * RESERVE}
    private.close()


def test_a_burn_ahead_that_fails_drops_the_masks_of_every_site(holder: Holder, burn_log: BurnLog) -> None:
    holder.store.publish("a", peft_files(D, RANK, layers=2), base_model="base", policy=policy())
    private = holder.key_holder(burn_log)
    for site in SITES:
        private.prepare(site)
    x = np.ones((1, D), dtype=np.float32)
    with (
        mock.patch.object(burn_log, "burn", side_effect=Unavailable("full")),
        pytest.raises(HeUnavailable, match="burned"),
    ):
        private.products([(SITES[0], x)])
    assert set(private.prepared().values()) == {0}
    private.close()
