"""The adapter holder's log of indices and tokens, over a file and over a table of DynamoDB.

Two logs over one store are two adapter holders, or one before and after a SIGKILL: nothing is in memory that
the store does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from tensafe.contracts.errors import Unavailable
from tensafe.storage.dynamodb_items import DynamoDbItems
from tensafe.storage.ports import Items
from tensafe.storage.sqlite_items import SqliteItems
from tensafe_gpu.helora.accepted import AcceptLog, Offer, Range, spent_tokens
from tensafe_gpu.helora.ports import BUDGET_SPENT, GARBAGE, VERSION_MISMATCH, HeUnavailable
from tests.contract.emulators import LOST, TABLE, Fault, Wire, create_table, moto_in_process

SITE, OTHER = "model.layers.0.self_attn.qkv", "model.layers.0.self_attn.o"
BLOCK, SECOND = b"\x01" * 16, b"\x02" * 16
DOWN = EndpointConnectionError(endpoint_url="x")


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@pytest.fixture(params=["file", "table"])
def items(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Items]:
    if request.param == "table":
        request.getfixturevalue("wire")
        yield DynamoDbItems(create_table(), TABLE)
        return
    file = SqliteItems(tmp_path / "items.db")
    yield file
    file.close()


@pytest.fixture
def table(wire: Wire) -> Items:
    return DynamoDbItems(create_table(), TABLE)


def offer(tokens: int = 10_000, tenant: str = "t", epoch: int = 1) -> Offer:
    return Offer("a", 1, epoch, tenant, tokens)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(HeUnavailable) as raised:
        call()
    return raised.value.code


def test_an_index_is_accepted_once_and_in_rising_order(items: Items) -> None:
    log = AcceptLog(items)
    log.open_block(offer(), SITE, BLOCK)
    assert log.sites(offer(), [Range(BLOCK, 0, 3)]) == [SITE]
    log.accept(offer(), [Range(BLOCK, 0, 3), Range(BLOCK, 3, 1)])
    for again in (0, 3):
        assert refused(lambda first=again: log.accept(offer(), [Range(BLOCK, first, 1)])) == GARBAGE
    log.accept(offer(), [Range(BLOCK, 4, 4092)])
    assert refused(lambda: log.accept(offer(), [Range(BLOCK, 4096, 1)])) == GARBAGE
    assert log.spent("a", 1, 1) == {SITE: {"t": 4096}}


def test_after_a_kill_what_was_reserved_is_used(items: Items) -> None:
    log = AcceptLog(items)
    log.open_block(offer(), SITE, BLOCK)
    log.accept(offer(), [Range(BLOCK, 0, 10)])
    again = AcceptLog(items)
    assert refused(lambda: again.accept(offer(), [Range(BLOCK, 10, 1)])) == GARBAGE
    assert refused(lambda: again.open_block(offer(), SITE, BLOCK)) == GARBAGE
    again.accept(offer(), [Range(BLOCK, 256, 1)])
    assert again.spent("a", 1, 1) == {SITE: {"t": 257}}
    assert spent_tokens(items, "a", 1, 1) == {SITE: {"t": 512}}


def test_two_processes_share_no_index(items: Items) -> None:
    """The first one's task has not ended when the second one's begins, and both are asked."""
    one, two = AcceptLog(items), AcceptLog(items)
    one.open_block(offer(), SITE, BLOCK)
    one.accept(offer(), [Range(BLOCK, 0, 10)])
    assert refused(lambda: two.accept(offer(), [Range(BLOCK, 10, 10)])) == GARBAGE
    two.accept(offer(), [Range(BLOCK, 256, 10)])
    one.accept(offer(), [Range(BLOCK, 10, 246)])  # what it had reserved is its own
    assert refused(lambda: one.accept(offer(), [Range(BLOCK, 256, 1)])) == GARBAGE
    assert refused(lambda: one.accept(offer(), [Range(BLOCK, 266, 1)])) == GARBAGE
    one.accept(offer(), [Range(BLOCK, 512, 1)])
    two.accept(offer(), [Range(BLOCK, 266, 246)])


def test_a_budget_holds_over_tenants_and_processes(items: Items) -> None:
    one, two = AcceptLog(items), AcceptLog(items)
    one.meter(offer(1000, "t"), {SITE: 200, OTHER: 1})
    two.meter(offer(1000, "u"), {SITE: 400})
    given = 0
    for log in (one, two) * 12:
        with suppress(HeUnavailable):
            log.meter(offer(1000, "t"), {SITE: 50})
            given += 50
    assert 0 < given <= 1000 - 200 - 400
    assert refused(lambda: two.meter(offer(1000, "u"), {OTHER: 1, SITE: 500})) == BUDGET_SPENT
    assert two.spent("a", 1, 1)[OTHER] == {"t": 256}  # nothing of a request that is refused in part


def test_blocks_belong_to_a_tenant_and_an_epoch(items: Items) -> None:
    log = AcceptLog(items)
    log.open_block(offer(), SITE, BLOCK)
    log.open_block(offer(epoch=2), SITE, BLOCK)  # other bases and other shares
    for wrong in (offer(tenant="u"), offer(epoch=3)):
        assert refused(lambda given=wrong: log.accept(given, [Range(BLOCK, 0, 1)])) == VERSION_MISMATCH
    assert refused(lambda: log.accept(offer(), [Range(SECOND, 0, 1)])) == VERSION_MISMATCH
    log.accept(offer(), [Range(BLOCK, 0, 1)])
    log.forget_blocks_before("a", 1, 2)
    assert refused(lambda: log.accept(offer(), [Range(BLOCK, 1, 1)])) == VERSION_MISMATCH
    assert refused(lambda: AcceptLog(items).accept(offer(), [Range(BLOCK, 256, 1)])) == VERSION_MISMATCH
    log.accept(offer(epoch=2), [Range(BLOCK, 0, 1)])
    assert spent_tokens(items, "a", 1, 1) == {SITE: {"t": 256}}


def test_more_sites_than_a_transaction_holds(items: Items) -> None:
    log, wanted = AcceptLog(items), {f"model.layers.{layer}.mlp.down": 2 for layer in range(150)}
    log.meter(offer(), wanted)
    assert log.spent("a", 1, 1) == {site: {"t": 2} for site in wanted}


@pytest.mark.parametrize("fault", [DOWN, LOST], ids=["down", "down-once-it-took-effect"])
def test_an_outage_accepts_nothing_twice_and_gives_no_token_back(
    wire: Wire, table: Items, fault: Fault
) -> None:
    log = AcceptLog(table)
    log.open_block(offer(512), SITE, BLOCK)
    log.accept(offer(512), [Range(BLOCK, 0, 256)])
    with wire.outage(1, fault, DOWN), pytest.raises(Unavailable):
        log.accept(offer(512), [Range(BLOCK, 256, 1)])
    # Whether the write was carried out is not known: what it may have reserved is used by nobody.
    if fault is LOST:
        assert spent_tokens(table, "a", 1, 1) == {SITE: {"t": 512}}
        assert refused(lambda: log.accept(offer(512), [Range(BLOCK, 256, 1)])) == GARBAGE
        assert refused(lambda: log.meter(offer(512), {SITE: 1})) == BUDGET_SPENT
    else:
        assert spent_tokens(table, "a", 1, 1) == {SITE: {"t": 256}}
        log.accept(offer(512), [Range(BLOCK, 256, 1)])
        assert refused(lambda: log.accept(offer(512), [Range(BLOCK, 256, 1)])) == GARBAGE
