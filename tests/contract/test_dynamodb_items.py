"""The items port on DynamoDB, over moto."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import Unavailable
from tensafe.storage.aws_clients import ATTEMPTS, Backoff
from tensafe.storage.dynamodb_items import DynamoDbItems, _bound, _key
from tensafe.storage.ports import Check, ConditionFailed, Delete, Item, Items, Key, Put, StorageError
from tests.contract.emulators import (
    LOST,
    TABLE,
    Answer,
    Fault,
    Wire,
    create_table,
    moto_in_process,
)
from tests.contract.items_suite import ItemsSuite

A, B = Key("p", "a"), Key("p", "b")


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@pytest.fixture
def client(wire: Wire) -> Any:
    client = create_table()
    wire.forget()
    return client


@pytest.fixture
def items(client: Any) -> Items:
    return DynamoDbItems(client, TABLE)


class TestDynamoDbItems(ItemsSuite):
    @pytest.mark.xfail(
        raises=Unavailable, strict=True, reason="moto: an item is at most 405,000 bytes, not 400 KB"
    )
    @pytest.mark.parametrize("where", ["body", "sealed"])
    def test_item_size_at_the_boundary(self, items: Items, partition: str, where: str) -> None:
        super().test_item_size_at_the_boundary(items, partition, where)


def cancelled(*reasons: str) -> Answer:
    """The answer of a transaction that was cancelled for these reasons, one for each of its writes."""
    return 400, {
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "Message": "Transaction cancelled",
        "CancellationReasons": [{"Code": reason} for reason in reasons],
    }


class TestTransactions:
    def test_a_conflict_is_tried_again_as_the_very_same_transaction(self, client: Any, wire: Wire) -> None:
        pauses: list[float] = []
        items = DynamoDbItems(client, TABLE, backoff=Backoff(sleep=pauses.append))
        conflict = cancelled("None", "TransactionConflict")
        wire.break_next(conflict, conflict, cancelled("ThrottlingError", "None"))
        items.write([Put(A, {"n": 1}, 0), Check(B, 0)])
        assert items.get(A) == Item(A, 1, {"n": 1})
        tries = [one for one in wire.sent if "TransactItems" in one]
        assert len(tries) == 4
        assert all(one == tries[0] for one in tries)
        assert tries[0]["ClientRequestToken"]
        assert len(pauses) == 3
        assert all(0 <= pause < 0.1 for pause in pauses)

    def test_two_writes_have_two_tokens(self, items: Items, wire: Wire) -> None:
        for version in range(2):
            items.write([Put(A, {}, version)])
        assert len({one["ClientRequestToken"] for one in wire.sent}) == 2

    def test_a_conflict_without_end_is_unavailable(self, client: Any, wire: Wire) -> None:
        items = DynamoDbItems(client, TABLE, backoff=Backoff(tries=5, sleep=lambda _: None))
        wire.break_next(*[cancelled("TransactionConflict")] * 5)
        with pytest.raises(Unavailable, match="others write"):
            items.write([Put(A, {}, 0)])
        assert len(wire.sent) == 5
        assert items.get(A) is None

    def test_a_condition_that_failed_decides(self, items: Items, wire: Wire) -> None:
        wire.break_next(cancelled("TransactionConflict", "ConditionalCheckFailed", "ConditionalCheckFailed"))
        with pytest.raises(ConditionFailed) as failure:
            items.write([Put(A, {}, 0), Check(B, 7), Delete(Key("p", "c"), 1)])
        assert failure.value.index == 1
        assert "version 7" in failure.value.message
        assert len(wire.sent) == 1

    @pytest.mark.parametrize("answer", [cancelled("ValidationError"), cancelled("Novelty"), cancelled()])
    def test_any_other_reason_is_final(self, items: Items, wire: Wire, answer: Answer) -> None:
        wire.break_next(answer)
        with pytest.raises(StorageError, match="refused"):
            items.write([Put(A, {}, 0)])
        assert len(wire.sent) == 1

    @pytest.mark.xfail(
        raises=ConditionFailed, strict=True, reason="moto: ClientRequestToken is ignored, so a retry applies"
    )
    def test_a_retry_after_a_lost_answer_finds_that_it_had_succeeded(self, items: Items, wire: Wire) -> None:
        wire.break_next(LOST)
        items.write([Put(A, {"n": 1}, 0)])
        assert items.get(A) == Item(A, 1, {"n": 1})

    def test_a_write_of_unknown_outcome_is_sent_again_and_then_unavailable(
        self, items: Items, wire: Wire
    ) -> None:
        wire.break_next(*[ReadTimeoutError(endpoint_url="x", error="x")] * ATTEMPTS)
        with pytest.raises(Unavailable, match="does not answer"):
            items.write([Put(A, {}, 0)])
        assert len(wire.sent) == ATTEMPTS
        assert len({one["ClientRequestToken"] for one in wire.sent}) == 1


class TestOutages:
    @pytest.mark.parametrize(
        "fault",
        [
            EndpointConnectionError(endpoint_url="x"),
            (500, {"__type": "InternalServerError"}),
            (400, {"__type": "ProvisionedThroughputExceededException"}),
        ],
    )
    def test_one_fault_is_not_noticed_and_many_are_unavailable(
        self, items: Items, wire: Wire, fault: Fault
    ) -> None:
        calls = (
            lambda: items.get(A),
            lambda: items.get_all([A, B]),
            lambda: items.query("p"),
            lambda: items.write([Delete(A, None)]),
        )
        for call in calls:
            wire.break_next(fault)
            call()
            wire.break_next(*[fault] * ATTEMPTS)
            with pytest.raises(Unavailable):
                call()

    def test_a_missing_table_or_right_is_unavailable_and_its_message_tells_nothing(
        self, client: Any, wire: Wire, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(Unavailable) as failure:
            DynamoDbItems(client, "another-table").get(A)
        assert "another-table" not in failure.value.message + caplog.text
        assert "GetItem refused by AWS: ResourceNotFoundException" in caplog.text
        wire.break_next((400, {"__type": "AccessDeniedException", "message": "arn:aws:iam::1:role/secret"}))
        with pytest.raises(Unavailable) as failure:
            DynamoDbItems(client, TABLE).write([Put(A, {}, 0)])
        assert "secret" not in failure.value.message + caplog.text


class TestReads:
    def test_every_read_is_consistent(self, items: Items, wire: Wire) -> None:
        items.get(A)
        items.query("p")
        items.query("p", first="a", last="b", descending=True)
        items.get_all([A, B])
        asked = wire.sent.pop()["RequestItems"][TABLE]
        assert [one["ConsistentRead"] for one in [*wire.sent, asked]] == [True] * 4

    def test_what_was_left_out_of_an_answer_is_asked_for_again(self, client: Any, wire: Wire) -> None:
        pauses: list[float] = []
        items = DynamoDbItems(client, TABLE, backoff=Backoff(sleep=pauses.append))
        items.write([Put(A, {"n": 1}, 0), Put(B, {"n": 2}, 0)])
        (of_b,) = client.batch_get_item(RequestItems={TABLE: {"Keys": [_key(B)]}})["Responses"][TABLE]
        left = {TABLE: {"Keys": [_key(A)], "ConsistentRead": True}}
        wire.forget()
        wire.break_next((200, {"Responses": {TABLE: [of_b]}, "UnprocessedKeys": left}))
        assert items.get_all([A, B]) == [Item(A, 1, {"n": 1}), Item(B, 1, {"n": 2})]
        assert [one["RequestItems"] for one in wire.sent][1:] == [left]
        assert len(pauses) == 1

    def test_nothing_but_what_was_left_out_is_unavailable_and_never_absent(
        self, client: Any, wire: Wire
    ) -> None:
        items = DynamoDbItems(client, TABLE, backoff=Backoff(tries=3, sleep=lambda _: None))
        items.write([Put(A, {}, 0)])
        left = {TABLE: {"Keys": [_key(A)], "ConsistentRead": True}}
        wire.break_next(*[(200, {"Responses": {}, "UnprocessedKeys": left})] * 3)
        with pytest.raises(Unavailable, match="keep up"):
            items.get_all([A])

    def test_expired_items_that_are_still_there_do_not_hide_live_ones(
        self, items: Items, client: Any
    ) -> None:
        past = int(time.time()) - 1
        items.write([Put(Key("p", f"a{n:02d}"), {}, 0, expires_at_s=past) for n in range(40)])
        items.write([Put(Key("p", f"b{n}"), {}, 0) for n in range(3)])
        assert client.scan(TableName=TABLE)["Count"] == 43
        assert [one.key.sort for one in items.query("p", limit=2)] == ["b0", "b1"]
        assert [one.key.sort for one in items.query("p", limit=5, descending=True)] == ["b2", "b1", "b0"]

    def test_an_expiry_is_what_the_table_deletes_by(self, items: Items, client: Any) -> None:
        items.write([Put(A, {}, 0, expires_at_s=4_000_000_000)])
        ttl = client.describe_time_to_live(TableName=TABLE)["TimeToLiveDescription"]
        stored = client.get_item(TableName=TABLE, Key={"pk": {"S": "p"}, "sk": {"S": "a"}})["Item"]
        assert stored[ttl["AttributeName"]] == {"N": "4000000000"}


SORT = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:/@=+-]{0,511}", fullmatch=True)
BOUND = SORT | st.builds(str.__add__, SORT, st.text(st.characters(exclude_categories=["Cs"]), max_size=600))


@given(bound=BOUND, sort=SORT, length=st.integers(0, 512))
def test_a_bound_that_was_cut_compares_as_before(bound: str, sort: str, length: int) -> None:
    cut = _bound(bound)
    assert len(cut.encode()) <= 1024
    for one in (sort, bound[:length] if bound[:length].isascii() else sort):
        assert (one >= bound, one <= bound) == (one >= cut, one <= cut)
