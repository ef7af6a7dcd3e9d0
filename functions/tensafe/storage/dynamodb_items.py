"""Items in one DynamoDB table: the counterpart of the SQLite file on AWS.

The table has the keys `pk` (partition, string) and `sk` (sort, string) and TTL on the attribute `x`.
An item has these, its version `v`, its body `b` as JSON text (numbers keep every digit that way, and
each item is one attribute to pay for), its sealed bytes `s` and its expiry `x` where it has them.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

from botocore.exceptions import ClientError

from tensafe.contracts.errors import Unavailable
from tensafe.storage.aws_clients import AwsClient, Backoff, aws_errors_made_ours
from tensafe.storage.checks import check_keys, check_query, check_writes, decode_body
from tensafe.storage.ports import Check, ConditionFailed, Delete, Item, Key, Put, StorageError, Write

_log = logging.getLogger(__name__)

TTL_ATTRIBUTE: Final = "x"
# DynamoDB removes expired items days late: they are filtered from every read and every condition.
_LIVE: Final = "(attribute_not_exists(x) OR x > :now)"
_ABSENT: Final = "(attribute_not_exists(pk) OR x <= :now)"
_AT_VERSION: Final = f"v = :version AND {_LIVE}"
_SORT_MAX_CHARS: Final = 512
_NOT_NOW: Final = frozenset(
    {
        "TransactionConflict",
        "ThrottlingError",
        "ProvisionedThroughputExceeded",
        "RequestLimitExceeded",
    }
)
"""Reasons to cancel that say nothing about the conditions: the same transaction may succeed later."""


class DynamoDbItems:
    """The items port on a table. Implements `Items`.

    Every write is one TransactWriteItems, even of one item: its ClientRequestToken lets a retry after
    a lost answer find that it had succeeded, where a conditional PutItem would find its own new version
    and report a lost race. That costs two write units for each instead of one.
    """

    def __init__(
        self,
        client: AwsClient,
        table: str,
        *,
        clock: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        """`client` is `aws_client("dynamodb")`; `clock` gives Unix seconds and decides what has expired."""
        self._client = client
        self._table = table
        self._clock = clock
        self._backoff = backoff or Backoff()

    def get(self, key: Key) -> Item | None:
        with aws_errors_made_ours("item store"):
            answer = self._client.get_item(TableName=self._table, Key=_key(key), ConsistentRead=True)
        attributes = answer.get("Item")
        return None if attributes is None else self._live(_item(attributes))

    def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        check_keys(keys)
        found: dict[Key, Item] = {}
        asked = [_key(key) for key in keys]
        for _ in self._backoff:
            wanted = {self._table: {"Keys": asked, "ConsistentRead": True}}
            with aws_errors_made_ours("item store"):
                answer = self._client.batch_get_item(RequestItems=wanted)
            items = [_item(attributes) for attributes in answer["Responses"].get(self._table, [])]
            found |= {item.key: item for item in items}
            left = answer.get("UnprocessedKeys", {}).get(self._table)
            if not left:
                return [self._live(found[key]) if key in found else None for key in keys]
            asked = left["Keys"]  # an answer ends at 16 MB, or where the table is throttled
        raise Unavailable("the item store does not keep up; try again")

    def query(
        self,
        partition: str,
        *,
        first: str = "",
        last: str | None = None,
        limit: int = 100,
        descending: bool = False,
    ) -> list[Item]:
        check_query(partition, first, last, limit)
        if last is not None and (not last or first > last):
            return []
        condition, values = _range(partition, first, last)
        request = {
            "TableName": self._table,
            "KeyConditionExpression": condition,
            "FilterExpression": _LIVE,
            "ExpressionAttributeValues": values | {":now": _number(self._now())},
            "ConsistentRead": True,
            "ScanIndexForward": not descending,
        }
        items: list[Item] = []
        page = limit
        # A page ends at 1 MB, and its limit counts what the filter then drops.
        with aws_errors_made_ours("item store"):
            while True:
                answer = self._client.query(**request, Limit=page)
                items += [_item(attributes) for attributes in answer["Items"]]
                if len(items) >= limit or "LastEvaluatedKey" not in answer:
                    return items[:limit]
                request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
                page *= 2  # what lies here is mostly expired

    def write(self, writes: Sequence[Write]) -> None:
        checked = check_writes(writes)
        now = self._now()
        request = {
            "TransactItems": [self._action(write, text, now) for write, text in checked],
            # One token and one `now` for every try: the service compares the request whole.
            "ClientRequestToken": str(uuid.uuid4()),
        }
        for _ in self._backoff:
            with aws_errors_made_ours("item store"):
                try:
                    self._client.transact_write_items(**request)
                except self._client.exceptions.TransactionCanceledException as error:
                    _raise_what_is_final(error, checked)
                else:
                    return
        raise Unavailable("others write the same items all the time; try again")

    def write_relaxed(self, writes: Sequence[Write]) -> None:
        """As `write`: there is nothing to be gained by promising less."""
        self.write(writes)

    def _action(self, write: Write, text: str, now: int) -> dict[str, Any]:
        condition, values = _condition(write, now)
        action: dict[str, Any] = {"TableName": self._table}
        if condition is not None:
            action |= {"ConditionExpression": condition, "ExpressionAttributeValues": values}
        match write:
            case Put():
                return {"Put": action | {"Item": _attributes(write, text)}}
            case Delete():
                return {"Delete": action | {"Key": _key(write.key)}}
            case Check():
                return {"ConditionCheck": action | {"Key": _key(write.key)}}

    def _live(self, item: Item) -> Item | None:
        return None if item.expires_at_s is not None and item.expires_at_s <= self._now() else item

    def _now(self) -> int:
        return int(self._clock())


def _condition(write: Write, now: int) -> tuple[str | None, dict[str, Any]]:
    if write.if_version is None:
        return None, {}
    if write.if_version == 0:
        return _ABSENT, {":now": _number(now)}
    return _AT_VERSION, {":now": _number(now), ":version": _number(write.if_version)}


def _range(partition: str, first: str, last: str | None) -> tuple[str, dict[str, Any]]:
    """The key condition; an empty string is no key value, so it cannot be a bound either."""
    condition, values = "pk = :pk", {":pk": {"S": partition}}
    if first:
        values[":first"] = {"S": _bound(first)}
    if last is not None:
        values[":last"] = {"S": _bound(last)}
    if first and last is not None:
        condition += " AND sk BETWEEN :first AND :last"
    elif first:
        condition += " AND sk >= :first"
    elif last is not None:
        condition += " AND sk <= :last"
    return condition, values


def _bound(text: str) -> str:
    """`text`, cut so that it compares with every sort key as before, and fits the 1024 bytes of a key.

    Sort keys are at most 512 ASCII characters: a comparison is decided by the 513th at the latest, or by
    the first that is not ASCII.
    """
    cut = next((index for index, char in enumerate(text) if not char.isascii()), len(text)) + 1
    return text[: min(cut, _SORT_MAX_CHARS + 1)]


def _key(key: Key) -> dict[str, Any]:
    return {"pk": {"S": key.partition}, "sk": {"S": key.sort}}


def _number(value: int) -> dict[str, str]:
    return {"N": str(value)}


def _attributes(put: Put, text: str) -> dict[str, Any]:
    attributes = _key(put.key) | {"v": _number(put.if_version + 1), "b": {"S": text}}
    if put.sealed:
        attributes["s"] = {"B": put.sealed}
    if put.expires_at_s is not None:
        attributes[TTL_ATTRIBUTE] = _number(put.expires_at_s)
    return attributes


def _item(attributes: dict[str, Any]) -> Item:
    expires = attributes.get(TTL_ATTRIBUTE)
    return Item(
        Key(attributes["pk"]["S"], attributes["sk"]["S"]),
        int(attributes["v"]["N"]),
        decode_body(attributes["b"]["S"]),
        bytes(attributes["s"]["B"]) if "s" in attributes else b"",
        None if expires is None else int(expires["N"]),
    )


def _raise_what_is_final(error: ClientError, checked: Sequence[tuple[Write, str]]) -> None:
    """Raise unless the transaction, of which nothing was applied, may succeed when it is sent again.

    A condition that failed decides, whatever else went wrong: trying again would judge a later state.
    """
    reasons = [str(reason.get("Code", "None")) for reason in error.response.get("CancellationReasons", [])]
    for index, reason in enumerate(reasons):
        if reason == "ConditionalCheckFailed":
            version = checked[index][0].if_version
            raise ConditionFailed(
                f"the item of write {index} is not at version {version}", index=index
            ) from error
    wrong = {reason for reason in reasons if reason != "None"} - _NOT_NOW
    if wrong or not reasons:
        _log.error("transaction cancelled: %s", ", ".join(sorted(wrong)) or "no reason given")
        raise StorageError("the item store refused the transaction") from error
