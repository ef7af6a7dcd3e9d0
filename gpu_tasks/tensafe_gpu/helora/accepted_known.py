"""What a process knows of the blocks and meters in an item store, each read when it is first asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set
from typing import Final, cast

from tensafe.storage.ports import Item, Items
from tensafe_gpu.helora.accepted_records import Block, Epoch, Meter, Offer, stored_block, tokens_of
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.ports import SiteId

_BLOCKS_READ: Final = 1000


class Known:
    """Blocks and meters by epoch. Not thread-safe: the log's lock guards it."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self.blocks: dict[tuple[Epoch, bytes], Block] = {}
        self._ids: dict[tuple[Epoch, str, SiteId], set[bytes]] = defaultdict(set)
        """Of the known blocks, by epoch, tenant and site."""
        self._read: set[Epoch] = set()
        """Whose stored blocks are all known."""
        self.meters: dict[tuple[Epoch, SiteId], Meter] = {}

    def block(self, of: Epoch, block_id: bytes) -> Block | None:
        """As it is known here, or as it is stored: what was reserved counts as used then."""
        block = self.blocks.get((of, block_id))
        if block is None:
            item = self._items.get(of.block(block_id))
            block = None if item is None else self._stored(of, block_id, item)
        return block

    def ids(self, offer: Offer, site: SiteId) -> Set[bytes]:
        """Of the known blocks of the offer's epoch and tenant at a site."""
        return self._ids.get((offer.of, offer.tenant, site), frozenset())

    def meter(self, of: Epoch, site: SiteId) -> Meter:
        """As it is known here, or as it is stored."""
        meter = self.meters.get((of, site))
        if meter is None:
            item = self._items.get(of.meter(site))
            tokens = {} if item is None else tokens_of(item)
            stored = 0 if item is None else item.version
            meter = self.meters[of, site] = Meter(tokens, dict(tokens), sum(tokens.values()), stored)
        return meter

    def read_all(self, of: Epoch) -> None:
        """Know every stored block of an epoch that is not used up, if that is not known to be so."""
        if of in self._read:
            return
        first, last = of.block(b""), f"{of.number:010d}0"
        begin = first.sort
        while found := self._items.query(first.partition, first=begin, last=last, limit=_BLOCKS_READ):
            for item in found:
                block_id = bytes.fromhex(item.key.sort.partition("/")[2])
                if (of, block_id) not in self.blocks and int(cast(int, item.body["until"])) < N:
                    self._stored(of, block_id, item)
            begin = found[-1].key.sort + "\0"
        self._read.add(of)

    def keep(self, of: Epoch, block_id: bytes, block: Block) -> None:
        """Know a block that was stored like this, beside all that are known."""
        self.blocks[of, block_id] = block
        self._ids[of, block.tenant, block.site].add(block_id)

    def drop(self, of: Epoch, block_id: bytes) -> None:
        """Know a block no more, which is used up or stored otherwise."""
        block = self.blocks.pop((of, block_id), None)
        if block is not None:
            ids = self._ids[of, block.tenant, block.site]
            ids.discard(block_id)
            if not ids:
                del self._ids[of, block.tenant, block.site]

    def doubt(self, of: Epoch, blocks: Iterable[bytes], sites: Iterable[SiteId]) -> None:
        """Read these again, and all blocks of the epoch: somebody, or a write that failed, may have changed
        them.
        """
        for block_id in blocks:
            self.drop(of, block_id)
        self._read.discard(of)
        for site in sites:
            self.meters.pop((of, site), None)

    def forget_before(self, adapter: str, version: int, epoch: int) -> None:
        """Drop all of earlier epochs."""
        for known in [key for key in self.blocks if _before(key[0], adapter, version, epoch)]:
            self.drop(*known)
        self._read = {of for of in self._read if not _before(of, adapter, version, epoch)}
        for metered in [key for key in self.meters if _before(key[0], adapter, version, epoch)]:
            del self.meters[metered]

    def _stored(self, of: Epoch, block_id: bytes, item: Item) -> Block | None:
        """Know a block as it is stored; None for one of a build whose shares hung on the block's id."""
        block = stored_block(item)
        if block is not None:
            self.keep(of, block_id, block)
        return block


def _before(of: Epoch, adapter: str, version: int, epoch: int) -> bool:
    return (of.adapter, of.version) == (adapter, version) and of.number < epoch
