"""How blocks and meters of the adapter holder lie in its item store, and what they are in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

from tensafe.storage.ports import Item, Items, JsonValue, Key
from tensafe_gpu.helora.ports import SiteId

_METERS_READ: Final = 10_000


class Epoch(NamedTuple):
    """An adapter's version in one of its bases: what blocks and meters belong to."""

    adapter: str
    version: int
    number: int

    def block(self, block_id: bytes) -> Key:
        return Key(f"accepted/{self.adapter}/{self.version}/blocks", f"{self.number:010d}/{block_id.hex()}")

    def meter(self, site: SiteId) -> Key:
        return Key(f"accepted/{self.adapter}/{self.version}/meters", f"{self.number:010d}/{site}")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a connection may use: an epoch of an adapter, by one tenant, at most so many tokens per site."""

    adapter: str
    version: int
    epoch: int
    tenant: str
    tokens_per_site: int
    of: Epoch = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", Epoch(self.adapter, self.version, self.epoch))


class Range(NamedTuple):
    """Indices [first, first + tokens) of a block."""

    block_id: bytes
    first: int
    tokens: int


@dataclass(slots=True)
class Block:
    """`next` is the first index that is not used, `until` the first that is not reserved here.

    `salt` is drawn as the block is opened, for its shares: whoever gets its id opened twice has two blocks
    whose shares have nothing in common.
    """

    site: SiteId
    tenant: str
    salt: bytes
    next: int
    until: int
    stored: int
    opened_s: int
    """Unix time; 0 for a block of an older build."""


@dataclass(slots=True)
class Meter:
    """Tokens of a site by tenant: used, and reserved in the store. `total` is the sum of what is used."""

    used: dict[str, int]
    reserved: dict[str, int]
    total: int
    stored: int


def spent_tokens(items: Items, adapter: str, version: int, epoch: int) -> dict[SiteId, dict[str, int]]:
    """What is metered in the store, by site and tenant; also while an adapter holder serves."""
    first = Epoch(adapter, version, epoch).meter("")
    found = items.query(first.partition, first=first.sort, last=f"{epoch:010d}0", limit=_METERS_READ)
    return {one.key.sort.partition("/")[2]: tokens_of(one) for one in found}


def block_body(block: Block, until: int) -> dict[str, JsonValue]:
    """Of a block whose indices below `until` are reserved."""
    return {
        "site": block.site,
        "tenant": block.tenant,
        "salt": block.salt.hex(),
        "opened_s": block.opened_s,
        "until": until,
    }


def stored_block(item: Item) -> Block | None:
    """What was reserved counts as used; None for a block of a build whose shares hung on the block's id."""
    until, salt = int(cast(int, item.body["until"])), item.body.get("salt")
    if salt is None:
        return None
    site, tenant = str(item.body["site"]), str(item.body["tenant"])
    opened_s = int(cast(int, item.body.get("opened_s", 0)))
    return Block(site, tenant, bytes.fromhex(str(salt)), until, until, item.version, opened_s)


def tokens_of(item: Item) -> dict[str, int]:
    """By tenant."""
    return {tenant: int(cast(int, tokens)) for tenant, tokens in item.body.items()}
