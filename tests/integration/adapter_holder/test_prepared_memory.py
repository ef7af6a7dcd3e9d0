"""What a key holder keeps of prepared blocks: the documented bytes of each, and at most two of a site."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Wanted, unix_connector
from tensafe_gpu.helora.exchange import gather
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.masks import PreparedBlock
from tensafe_gpu.helora.parameters import MAX_TOKENS, N
from tensafe_gpu.helora.ports import SiteId
from tensafe_gpu.sampler.engine import SamplingEngine
from tensafe_gpu.sampler.private.adapter import PrivateAdapter, vllm_name
from tensafe_gpu.sampler.private.budget import Budget
from tensafe_gpu.sampler.private.holders import OpenAdapter, OpenAdapters
from tensafe_gpu.sampler.private.preparing import LOW_WATER
from tensafe_gpu.sampler.private.serving import PrivateServing
from tests.project_files import ROOT
from tests.support.helora import QUICK, TENANT, Holder, layers_of, peft_files, policy
from tests.support.holder_process import HolderProcess

D, RANK = 64, 4
QKV, OUT = (f"model.layers.0.self_attn.{site}" for site in ("qkv", "o"))
ROWS = {QKV: 3 * RANK, OUT: RANK}
ROW_BYTES = 16 * 1024
"""Of a block of 4096 tokens, for each row of A (docs/helora.md, "Cost")."""
PASS = 2048
"""The most tokens of a sampler's pass."""
ADAPTER = PrivateAdapter("a", "1", {})


def published(holder: Holder) -> None:
    files = peft_files(D, RANK)
    holder.store.publish("a", files, base_model="base", policy=policy(tokens_per_site=10**6))


class Blocks:
    """The blocks in this process, whoever keeps them, but for those that were there before."""

    def __init__(self) -> None:
        self._before = {one.block_id for one in self._all()}

    def kept(self) -> dict[int, int]:
        """Bytes by number of rows: of whole arrays, not views."""
        found: dict[int, dict[int, int]] = {rows: {} for rows in ROWS.values()}
        for one in self._all():
            array: Any = one.shares
            while array.base is not None:
                array = array.base
            if one.block_id not in self._before:
                found[one.shares.shape[1]][id(array)] = array.nbytes
        return {rows: sum(sizes.values()) for rows, sizes in found.items()}

    @staticmethod
    def _all() -> list[PreparedBlock]:
        gc.collect()
        return [one for one in gc.get_objects() if type(one) is PreparedBlock]


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


def test_a_prepared_block_takes_what_is_documented_and_nothing_is_kept_beside_it(
    tmp_path: Path, burn_log: BurnLog, blocks: Blocks
) -> None:
    """Not the masks either, 4 bytes for each input of each token: they are made again from their key."""
    (tmp_path / "peft").mkdir()
    for name, content in peft_files(D, RANK).items():
        (tmp_path / "peft" / name).write_bytes(content)
    holder = HolderProcess(tmp_path / "holder")  # so that what is counted here is the key holder's
    try:
        holder.publish("a", tmp_path / "peft", base_model="base", tenant=TENANT, tokens_per_site=10**6)
        private = RemoteKeyHolder(unix_connector(holder.socket), Wanted(TENANT, "a"), burn_log, QUICK)
        for site in ROWS:
            private.prepare(site)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for site in (*ROWS, *ROWS):
            private.prepare(site)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        holder.kill()
    documented = 2 * ROW_BYTES * sum(ROWS.values())
    assert documented <= grown <= documented + 64 * 1024 < documented + 4 * N * D
    assert blocks.kept() == {rows: 3 * ROW_BYTES * rows for rows in ROWS.values()}
    private.close()
    assert sum(blocks.kept().values()) == 0


def test_the_documented_sizes_are_those_of_the_code() -> None:
    """At 896 x 24 with rank 16 on q, k, v and o, and for as many adapters as may be resident."""
    text = " ".join((ROOT / "docs" / "vllm.md").read_text(encoding="utf-8").split())
    places = inspect.signature(SamplingEngine.start).parameters["max_resident_adapters"].default
    block_mb = ROW_BYTES * 24 * 4 * 16 / 1e6
    assert f"below {LOW_WATER:,} tokens" in text
    assert f"one block of {N:,}" in text
    assert f"a block of every site takes {block_mb:.0f} MB" in text
    assert f"an adapter has at most {2 * block_mb:.0f} MB" in text
    assert f"all {places} that may be resident {places * 2 * block_mb / 1000:.1f} GB" in text
    assert f"The key holder keeps {ROW_BYTES // 1024} KB " in (ROOT / "docs" / "helora.md").read_text()


@dataclass
class Sampler:
    """A worker's open adapter and the sampler's side of it, over a real key holder."""

    private: RemoteKeyHolder
    adapters: OpenAdapters
    peak: Counter[int] = field(default_factory=Counter)
    """The most bytes of blocks that were ever kept, by number of rows."""
    made: Counter[SiteId] = field(default_factory=Counter)
    gate: threading.Event = field(default_factory=threading.Event)
    """Held back while it is not set: the next block."""

    @property
    def opened(self) -> OpenAdapter:
        found = self.adapters.get(vllm_name(ADAPTER, 1))
        assert found is not None
        return found

    async def rpc(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """The worker extension's methods, which are one line each and need vLLM."""
        match method.removeprefix("tensafe_private_"):
            case "open":
                return self.adapters.open(*arguments)
            case "close":
                return self.adapters.close(*arguments)
            case "failures":
                return self.adapters.failures()
            case "state":
                return self.opened.facts()
            case "missing":
                return self.opened.missing(arguments[1])
            case other:
                assert other == "standing"
                return self.opened.standing()

    def forward(self, tokens: int) -> None:
        """A pass with so many rows of the adapter's, at both of its layers."""
        budget, x = Budget(tokens, 10), np.ones((tokens, D), np.float32)
        for placed in self.opened.placed.values():
            pending = self.opened.ask(placed, x, budget)
            gather([one for one in (pending.asked,) if one is not None])
            self.opened.answered(placed, pending, budget)


@contextmanager
def sampler(holder: Holder, burn_log: BurnLog, blocks: Blocks) -> Iterator[Sampler]:
    published(holder)
    private = holder.key_holder(burn_log)
    adapters = OpenAdapters(lambda _: private, layers_of(private.info()), torch.device("cpu"))
    found, prepare = Sampler(private, adapters), private.prepare
    found.gate.set()

    def counted(site: SiteId) -> None:
        assert found.gate.wait(10)
        prepare(site)
        found.made[site] += 1
        for rows, size in blocks.kept().items():
            found.peak[rows] = max(found.peak[rows], size)

    private.prepare = counted  # type: ignore[method-assign]
    yield found
    found.gate.set()
    found.opened.close()


def within(sizes: Mapping[int, int], blocks: int) -> None:
    for rows, size in sizes.items():
        assert size <= blocks * ROW_BYTES * rows, (rows, size)


def settled(sampler: Sampler) -> Mapping[SiteId, int]:
    """What is prepared once nothing runs low and no block has come for a while."""
    for _ in range(1000):
        made, left = sum(sampler.made.values()), sampler.private.prepared()
        threading.Event().wait(0.3)  # some blocks' time
        if sum(sampler.made.values()) == made and min(left.values()) >= LOW_WATER:
            return left
    raise AssertionError("it prepares for ever")


def test_prompts_of_any_length_have_no_more_prepared_for_them_than_two_blocks_of_a_site(
    holder: Holder, burn_log: BurnLog, blocks: Blocks
) -> None:
    """Eight at once that want ten blocks each, three times over, with passes that use some in between."""

    async def asked(found: Sampler) -> None:
        serving, name = PrivateServing(found.rpc, open_s=10, block_s=10), vllm_name(ADAPTER, 1)
        await serving.open(ADAPTER, 1)
        assert dict(found.private.prepared()) == dict.fromkeys(ROWS, N)

        async def begun() -> None:
            assert min(found.private.prepared().values()) >= N

        for used in (1, PASS, N - PASS):
            await asyncio.to_thread(found.forward, used)
            await asyncio.gather(*(serving.run(name, begun(), 10 * N) for _ in range(8)))

    with sampler(holder, burn_log, blocks) as found:
        asyncio.run(asyncio.wait_for(asked(found), 60))
        assert max(settled(found).values()) < 2 * N
        assert min(found.made.values()) >= 2  # they had to wait for some
        within(found.peak, 2)


def test_passes_that_use_more_than_is_prepared_leave_no_more_than_two_blocks_of_a_site(
    holder: Holder, burn_log: BurnLog, blocks: Blocks
) -> None:
    """Then one that wants a block of a site while the thread makes one of it."""
    with sampler(holder, burn_log, blocks) as found:
        asyncio.run(PrivateServing(found.rpc, open_s=10).open(ADAPTER, 1))
        for tokens in (PASS, PASS - LOW_WATER // 2, 1, PASS, PASS, PASS, PASS, PASS):
            found.forward(tokens)
        settled(found)
        within(blocks.kept(), 2)
        found.gate.clear()
        while (spare := min(found.private.prepared().values()) - LOW_WATER // 2) > 0:
            found.forward(min(spare, PASS))  # the last wakes the thread
        passing = threading.Thread(target=found.forward, args=(PASS,))
        passing.start()
        passing.join(0.2)
        assert passing.is_alive()
        found.gate.set()
        passing.join(20)
        assert found.opened.failure is None
        settled(found)
        within(blocks.kept(), 2)


def test_a_used_up_block_is_gone_and_so_is_everything_when_the_adapter_is_closed(
    holder: Holder, burn_log: BurnLog, blocks: Blocks
) -> None:
    with sampler(holder, burn_log, blocks) as found:
        asyncio.run(PrivateServing(found.rpc, open_s=10).open(ADAPTER, 1))
        found.gate.clear()
        for tokens in (MAX_TOKENS - 1, 1):
            found.forward(tokens)
        assert sum(blocks.kept().values()) == 0
        found.gate.set()
        settled(found)
        assert sum(blocks.kept().values()) > 0
        found.opened.close()
        assert sum(blocks.kept().values()) == 0
