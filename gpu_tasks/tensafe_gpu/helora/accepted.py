"""Indices that the adapter holder answered and tokens that it metered: durable before an answer leaves.

An index that is answered twice cancels its share of the mask and gives A times a difference for nothing. So a
block's indices are accepted in rising order, once, across restarts; what is metered is never refunded.

Both are reserved in steps of RESERVE in the item store, a file or a table of DynamoDB, by writes on condition
that nobody else did. What is reserved belongs to the process that reserved it, and counts as used for every
other one, and after a restart. So of two adapter holders over one table, while one replaces the other, none
answers what the other one has.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from tensafe.contracts.errors import Unavailable
from tensafe.storage.ports import (
    TRANSACTION_MAX_WRITES,
    ConditionFailed,
    Delete,
    Items,
    Put,
)
from tensafe_gpu.helora.accepted_known import Known
from tensafe_gpu.helora.accepted_records import (
    Block,
    Epoch,
    Offer,
    Range,
    block_body,
    spent_tokens,
)
from tensafe_gpu.helora.burned import rounded_up
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.ports import (
    BUDGET_SPENT,
    GARBAGE,
    TOO_MANY_BLOCKS,
    VERSION_MISMATCH,
    HeUnavailable,
    SiteId,
)

_TRIES: Final = 4
"""How often a request is looked at again because another process reserved something of the same."""
MAX_LIVE: Final = 128
"""Blocks of a tenant at one site that are open and not used up; a sampler has two."""
LIVE_S: Final = 3600
"""A block that was opened so long ago makes room for another one: who prepared it has most likely ended."""
_SALT_BYTES: Final = 32


class AcceptLog:
    """Blocks and meters of the adapters in an item store. Thread-safe."""

    def __init__(self, items: Items, *, clock: Callable[[], float] = time.time) -> None:
        self._items, self._clock = items, clock
        self._lock, self._known = threading.Lock(), Known(items)

    def open_block(self, offer: Offer, site: SiteId, block_id: bytes) -> bytes:
        """Take a block's id, once in its epoch; the salt of its shares.

        A tenant has at most MAX_LIVE blocks of a site that are not used up; what was opened LIVE_S ago is
        used up to make room. All stay in the store until their epoch ends: so an id is known to be taken.
        Raises HeUnavailable: taken, nothing left of the budget, or too many blocks.
        """
        with self._lock:
            self._check_budget(offer, {site: 1})
            for _ in range(_TRIES):
                leaving = self._leaving(offer, site)
                block = Block(site, offer.tenant, os.urandom(_SALT_BYTES), 0, 0, 1, int(self._clock()))
                writes = [Put(offer.of.block(block_id), block_body(block, 0), 0)]
                for one in leaving:
                    known = self._known.blocks[offer.of, one]
                    writes.append(Put(offer.of.block(one), block_body(known, N), known.stored))
                done = False
                try:
                    self._items.write(writes)
                    done = True
                except ConditionFailed:
                    if self._items.get(offer.of.block(block_id)) is not None:
                        raise HeUnavailable(GARBAGE, "this block id has been used") from None
                finally:
                    if not done:  # nor is it known who changed them, or whether it was carried out
                        self._known.doubt(offer.of, leaving, ())
                if done:
                    for one in leaving:
                        self._known.drop(offer.of, one)
                    self._known.keep(offer.of, block_id, block)
                    return block.salt
            raise Unavailable("another adapter holder uses the same store all the time")

    def sites(self, offer: Offer, ranges: Sequence[Range]) -> list[SiteId]:
        """The site of each range, as `accept` would find it; nothing is accepted. Raises HeUnavailable."""
        with self._lock:
            return self._checked(offer, ranges)[0]

    def accept(self, offer: Offer, ranges: Sequence[Range]) -> list[bytes]:
        """Accept and meter all ranges durably, or none; the salt of each range's block.

        Raises HeUnavailable: a block that this tenant did not prepare in this epoch, an index that is not
        new, or more tokens than the budget has left. Unavailable when the store does not answer.
        """
        with self._lock:
            for _ in range(_TRIES):
                _, nexts, wanted = self._checked(offer, ranges)
                if self._reserved(offer, nexts, wanted):
                    for block_id, index in nexts.items():
                        self._known.blocks[offer.of, block_id].next = index
                    self._count(offer, wanted)
                    return [self._known.blocks[offer.of, one.block_id].salt for one in ranges]
            raise Unavailable("another adapter holder uses the same store all the time")

    def meter(self, offer: Offer, wanted: Mapping[SiteId, int]) -> None:
        """Meter tokens of the direct mode durably, all or none. Raises HeUnavailable beyond the budget."""
        with self._lock:
            for _ in range(_TRIES):
                self._check_budget(offer, wanted)
                if self._reserved(offer, {}, wanted):
                    return self._count(offer, wanted)
            raise Unavailable("another adapter holder uses the same store all the time")

    def forget_blocks_before(self, adapter: str, version: int, epoch: int) -> None:
        """Drop the blocks of earlier epochs, which nobody can use again; meters stay in the store.

        Killed in between, what is left goes with the next call. An id that is opened again, by a session
        which does not know yet that its epoch is over, is another block with another salt.
        """
        partition = Epoch(adapter, version, epoch).block(b"\0").partition
        with self._lock:
            self._known.forget_before(adapter, version, epoch)
        # No other request waits for this. A block that is read again meanwhile answers nothing reserved.
        while old := self._items.query(partition, last=f"{epoch:010d}", limit=TRANSACTION_MAX_WRITES):
            self._items.write([Delete(one.key, None) for one in old])

    def spent(self, adapter: str, version: int, epoch: int) -> dict[SiteId, dict[str, int]]:
        """Tokens metered by site and tenant; after a crash rounded up to what was reserved."""
        of = Epoch(adapter, version, epoch)
        with self._lock:
            stored = spent_tokens(self._items, adapter, version, epoch)
            here = {site: meter.used for (one, site), meter in self._known.meters.items() if one == of}
            return stored | {site: dict(used) for site, used in here.items() if used}

    def _checked(
        self, offer: Offer, ranges: Sequence[Range]
    ) -> tuple[list[SiteId], dict[bytes, int], dict[SiteId, int]]:
        sites: list[SiteId] = []
        nexts: dict[bytes, int] = {}
        wanted: dict[SiteId, int] = defaultdict(int)
        for one in ranges:
            block = self._known.block(offer.of, one.block_id)
            if block is None or block.tenant != offer.tenant:
                raise HeUnavailable(VERSION_MISMATCH, "a block that was not prepared here in this epoch")
            first_new = nexts.get(one.block_id, block.next)
            if one.tokens < 1 or one.first < first_new or one.first + one.tokens > N:
                raise HeUnavailable(GARBAGE, "an index that is not new, or beyond its block")
            nexts[one.block_id] = one.first + one.tokens
            wanted[block.site] += one.tokens
            sites.append(block.site)
        self._check_budget(offer, wanted)
        return sites, nexts, wanted

    def _check_budget(self, offer: Offer, wanted: Mapping[SiteId, int]) -> None:
        """Of all tenants together: who has several must not learn more."""
        for site, count in wanted.items():
            if self._known.meter(offer.of, site).total + count > offer.tokens_per_site:
                raise HeUnavailable(BUDGET_SPENT, f"the token budget of {site} is spent for this epoch")

    def _count(self, offer: Offer, wanted: Mapping[SiteId, int]) -> None:
        for site, count in wanted.items():
            meter = self._known.meter(offer.of, site)
            meter.used[offer.tenant] = meter.used.get(offer.tenant, 0) + count
            meter.total += count

    def _reserved(self, offer: Offer, nexts: Mapping[bytes, int], wanted: Mapping[SiteId, int]) -> bool:
        """Reserve durably what is not yet; False, with nothing of it believed any more, if others did.

        More may be reserved than was asked for in the end, never less.
        """
        blocks = {
            block_id: rounded_up(index)
            for block_id, index in nexts.items()
            if index > self._known.blocks[offer.of, block_id].until
        }
        tokens = {}
        for site, count in wanted.items():
            meter = self._known.meter(offer.of, site)
            after = meter.used.get(offer.tenant, 0) + count
            if after > meter.reserved.get(offer.tenant, 0):
                tokens[site] = rounded_up(after)
        return not (blocks or tokens) or self._written(offer, blocks, tokens)

    def _written(self, offer: Offer, blocks: Mapping[bytes, int], tokens: Mapping[SiteId, int]) -> bool:
        writes, done = list(self._writes(offer, blocks, tokens)), False
        try:
            for first in range(0, len(writes), TRANSACTION_MAX_WRITES):
                self._items.write(writes[first : first + TRANSACTION_MAX_WRITES])
            done = True
        except ConditionFailed:
            return False
        finally:
            if not done:  # nor is it known whether a write that failed was carried out
                self._known.doubt(offer.of, blocks, tokens)
        for block_id, until in blocks.items():
            block = self._known.blocks[offer.of, block_id]
            block.until, block.stored = until, block.stored + 1
        for site, reserved in tokens.items():
            meter = self._known.meters[offer.of, site]
            meter.reserved[offer.tenant], meter.stored = reserved, meter.stored + 1
        return True

    def _writes(
        self, offer: Offer, blocks: Mapping[bytes, int], tokens: Mapping[SiteId, int]
    ) -> Iterable[Put]:
        for block_id, until in blocks.items():
            block = self._known.blocks[offer.of, block_id]
            yield Put(offer.of.block(block_id), block_body(block, until), block.stored)
        for site, reserved in tokens.items():
            meter = self._known.meters[offer.of, site]
            yield Put(offer.of.meter(site), {**meter.reserved, offer.tenant: reserved}, meter.stored)

    def _leaving(self, offer: Offer, site: SiteId) -> list[bytes]:
        """Ids of blocks that make room for another one. Raises HeUnavailable if too many stay."""
        self._known.read_all(offer.of)
        live = []
        for one in list(self._known.ids(offer, site)):
            block = self._known.blocks[offer.of, one]
            if block.next < N:
                live.append((block.opened_s, one))
            else:
                self._known.drop(offer.of, one)
        live.sort()
        over = live[: max(0, len(live) + 1 - MAX_LIVE)]
        if over and over[-1][0] > self._clock() - LIVE_S:
            raise HeUnavailable(
                TOO_MANY_BLOCKS,
                f"{MAX_LIVE} blocks of {site} are open and not used up: use them, or come later",
            )
        return [one for _, one in over][: TRANSACTION_MAX_WRITES - 1]
