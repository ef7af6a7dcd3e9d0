"""The adapter holder's log of indices and tokens, over a file and over a table of DynamoDB.

Two logs over one store are two adapter holders, or one before and after a SIGKILL: nothing is in memory that
the store does not have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from tensafe.contracts.errors import Unavailable
from tensafe.storage.dynamodb_items import DynamoDbItems
from tensafe.storage.ports import Items
from tensafe.storage.sqlite_items import SqliteItems
from tensafe_gpu.helora import accepted
from tensafe_gpu.helora.accepted import LIVE_S, AcceptLog
from tensafe_gpu.helora.accepted_records import Offer, Range, spent_tokens
from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.ports import BUDGET_SPENT, GARBAGE, TOO_MANY_BLOCKS, VERSION_MISMATCH, HeUnavailable
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


@pytest.mark.parametrize(
    "overlapping",
    [
        [Range(BLOCK, 0, 3), Range(BLOCK, 1, 1)],
        [Range(BLOCK, 0, 3), Range(BLOCK, 2, 3)],
        [Range(BLOCK, 0, 3), Range(BLOCK, 0, 3)],
        [Range(BLOCK, 0, 3), Range(SECOND, 0, 3), Range(BLOCK, 2, 1)],
        [Range(BLOCK, 3, 1), Range(BLOCK, 0, 3)],
    ],
    ids=["within", "beyond", "the same", "with another block in between", "falling"],
)
def test_indices_that_meet_within_one_request_are_refused_and_cost_nothing(
    items: Items, overlapping: list[Range]
) -> None:
    log = AcceptLog(items)
    for block in (BLOCK, SECOND):
        log.open_block(offer(), SITE, block)
    assert refused(lambda: log.sites(offer(), overlapping)) == GARBAGE
    assert refused(lambda: log.accept(offer(), overlapping)) == GARBAGE
    assert log.spent("a", 1, 1) == spent_tokens(items, "a", 1, 1) == {}
    log.accept(offer(), [Range(BLOCK, 0, 3), Range(SECOND, 0, 3), Range(BLOCK, 3, 1)])
    assert log.spent("a", 1, 1) == {SITE: {"t": 7}}


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


def test_nobody_waits_for_what_is_over_to_be_deleted(items: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store may take its time over it."""
    log = AcceptLog(items)
    log.open_block(offer(), SITE, BLOCK)
    log.open_block(offer(epoch=2), SITE, BLOCK)
    query, answered = items.query, []

    def slow(*given: Any, **named: Any) -> Any:
        asking = threading.Thread(
            target=lambda: answered.append(log.accept(offer(epoch=2), [Range(BLOCK, len(answered), 1)]))
        )
        asking.start()
        asking.join(10)
        return query(*given, **named)

    monkeypatch.setattr(items, "query", slow)
    log.forget_blocks_before("a", 1, 2)
    monkeypatch.undo()
    assert len(answered) == 2
    assert stored_blocks(items) == []


def stored_blocks(items: Items, epoch: int = 1) -> list[str]:
    one = offer(epoch=epoch).of.block(b"\0")
    found = items.query(one.partition, first=f"{epoch:010d}/", last=f"{epoch:010d}0", limit=1000)
    return [item.key.sort.partition("/")[2] for item in found]


def test_a_tenant_opens_so_many_blocks_of_a_site_and_no_more(
    items: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens blocks without using them is refused, also by the next process."""
    monkeypatch.setattr(accepted, "MAX_LIVE", 4)
    now = [1_700_000_000.0]
    log = AcceptLog(items, clock=lambda: now[0])
    ids = [bytes([number] * 16) for number in range(50)]
    for one in ids[:4]:
        log.open_block(offer(), SITE, one)
    log.open_block(offer(), OTHER, ids[4])
    log.open_block(offer(tenant="u"), SITE, ids[5])
    log.open_block(offer(epoch=2), SITE, ids[0])
    restarted = AcceptLog(items, clock=lambda: now[0])
    for one in (log, restarted, log):
        assert refused(lambda log=one: log.open_block(offer(), SITE, ids[6])) == TOO_MANY_BLOCKS
    assert len(stored_blocks(items)) == 6
    log.accept(offer(), [Range(ids[1], 0, N)])  # used up: it makes room, whichever process knows it
    again = AcceptLog(items, clock=lambda: now[0])
    again.open_block(offer(), SITE, ids[6])
    assert ids[1].hex() in stored_blocks(items)  # by which its id is known to be taken
    for one in (log, again, AcceptLog(items)):
        assert refused(lambda log=one: log.accept(offer(), [Range(ids[1], N - 1, 1)])) == GARBAGE
        assert refused(lambda log=one: log.open_block(offer(), OTHER, ids[1])) == GARBAGE
    now[0] += LIVE_S + 1  # and so does what nobody used up for so long: the oldest, one for one
    stale = AcceptLog(items)
    stale.sites(offer(), [Range(ids[0], 0, 1)])  # another process, which knows it as it is
    again.accept(offer(), [Range(ids[2], 256, 1)])
    for number, one in enumerate(ids[7:40]):
        now[0] += LIVE_S / 4 + 1
        again.open_block(offer(), SITE, one)
        assert len(stored_blocks(items)) == 7 + number + 1
        assert len(again._known.ids(offer(), SITE)) == 4
    for log in (again, stale, AcceptLog(items)):
        assert refused(lambda log=log: log.accept(offer(), [Range(ids[0], 0, 1)])) == GARBAGE
        assert refused(lambda log=log: log.accept(offer(), [Range(ids[2], 512, 1)])) == GARBAGE
    now[0] += LIVE_S + 1
    assert refused(lambda: again.open_block(offer(), SITE, ids[0])) == GARBAGE
    again.accept(offer(epoch=2), [Range(ids[0], 0, 1)])


def test_two_processes_that_make_room_at_once_use_up_each_block_for_both(
    items: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepted, "MAX_LIVE", 2)
    now = [1_700_000_000.0]
    one, two = (AcceptLog(items, clock=lambda: now[0]) for _ in range(2))
    ids = [bytes([number] * 16) for number in range(6)]
    one.open_block(offer(), SITE, ids[0])
    one.open_block(offer(), SITE, ids[1])
    now[0] += LIVE_S + 1
    assert two.sites(offer(), [Range(ids[0], 0, 1), Range(ids[1], 0, 1)]) == [SITE, SITE]
    one.open_block(offer(), SITE, ids[2])  # ids[0] goes; two does not know it yet
    two.open_block(offer(), SITE, ids[3])  # ids[1] goes
    for log in (one, two):
        assert refused(lambda log=log: log.accept(offer(), [Range(ids[0], 0, 1)])) == GARBAGE
        assert refused(lambda log=log: log.accept(offer(), [Range(ids[1], 0, 1)])) == GARBAGE
    one.accept(offer(), [Range(ids[2], 0, 1)])
    two.accept(offer(), [Range(ids[3], 0, 1)])


def test_a_prune_that_was_killed_is_finished_and_no_index_of_it_is_answered(
    items: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepted, "TRANSACTION_MAX_WRITES", 2)
    log, ids = AcceptLog(items), [bytes([number] * 16) for number in range(7)]
    for one in ids:
        log.open_block(offer(), SITE, one)
        log.accept(offer(), [Range(one, 0, 1)])
    log.open_block(offer(epoch=2), SITE, BLOCK)
    write, left = type(items).write, [2]

    def killed(self: Items, writes: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise SystemExit
        write(self, writes)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(type(items), "write", killed)
        with pytest.raises(SystemExit):
            log.forget_blocks_before("a", 1, 2)
    assert len(stored_blocks(items)) == 3
    again = AcceptLog(items)
    for one in ids[:4]:
        assert refused(lambda one=one: again.accept(offer(), [Range(one, 0, 1)])) == VERSION_MISMATCH
    for one in ids[4:]:
        assert refused(lambda one=one: again.accept(offer(), [Range(one, 0, 1)])) == GARBAGE
    again.forget_blocks_before("a", 1, 2)
    assert stored_blocks(items) == []
    assert stored_blocks(items, 2) == [BLOCK.hex()]
    again.accept(offer(epoch=2), [Range(BLOCK, 0, 1)])


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


A_QKV, A_OUT, B_QKV, B_OUT = (bytes([n]) * 16 for n in range(10, 14))
BLOCKS = (A_QKV, SITE), (A_OUT, OTHER), (B_QKV, SITE), (B_OUT, OTHER)


def test_a_reserve_is_of_what_was_asked_alone(items: Items) -> None:
    """Two samplers of a tenant, and whatever one does, the other's blocks go on: also at another holder, when
    a write of the first one fails, and after a restart, where its sampler begins at its own next reserve.
    """
    one, other = AcceptLog(items), AcceptLog(items)
    for block, site in BLOCKS[:2]:
        one.open_block(offer(), site, block)
        one.accept(offer(), [Range(block, 0, 100)])
    for block, site in BLOCKS[2:]:
        other.open_block(offer(), site, block)  # it reads what is open
        other.accept(offer(), [Range(block, 0, 200)])
        other.accept(offer(), [Range(block, 200, 2048)])
    for first in range(100, 600):
        for block in (A_QKV, A_OUT):
            one.accept(offer(), [Range(block, first, 1)])
    third = AcceptLog(items)
    for block in (A_QKV, A_OUT):
        assert refused(lambda block=block: third.accept(offer(), [Range(block, 767, 1)])) == GARBAGE
        third.accept(offer(), [Range(block, 768, 1)])


def test_a_write_that_fails_takes_nothing_from_another_sampler(
    items: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AcceptLog(items)
    for block, site in BLOCKS:
        log.open_block(offer(), site, block)
        log.accept(offer(), [Range(block, 0, 200)])
    with monkeypatch.context() as failing:
        failing.setattr(items, "write", lambda _: (_ for _ in ()).throw(Unavailable("throttled")))
        with pytest.raises(Unavailable):
            log.accept(offer(), [Range(A_QKV, 200, 100)])
    for block in (A_OUT, B_QKV, B_OUT):
        log.accept(offer(), [Range(block, 200, 1)])
