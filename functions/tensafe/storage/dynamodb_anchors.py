"""Anchors in a DynamoDB table of their own: no restore of the items' table reaches it.

The table has the keys `pk` (the mark's name) and `sk` (always "anchor"), strings both, and belongs to another
account or to a role that may not delete or restore: what a ledger is held to must not lie in the ledger's
hand. A mark is one item: `n` its position, `b` its body as JSON text, `w` a token of the write that made it.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Final

from botocore.exceptions import ClientError

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.storage.anchors import Mark
from tensafe.storage.aws_clients import AwsClient, aws_errors_made_ours, error_code
from tensafe.storage.ports import ConditionFailed

_STORE: Final = "anchor store"
_SORT: Final = {"S": "anchor"}
BODY_MAX_BYTES: Final = 1500
"""As much as a file of the embedded adapter holds, less its name and digest."""


class DynamoDbAnchors:
    """The anchors port on a table. Implements `Anchors`.

    The role needs dynamodb:GetItem and dynamodb:PutItem on it, and dynamodb:Scan for listing.
    """

    def __init__(self, client: AwsClient, table: str) -> None:
        """`client` is `aws_client("dynamodb")`; `table` a name, or the ARN of another account's table."""
        self._client = client
        self._table = table

    def get(self, name: str) -> Mark | None:
        with aws_errors_made_ours(_STORE):
            answer = self._client.get_item(TableName=self._table, Key=_key(name), ConsistentRead=True)
        item = answer.get("Item")
        return None if item is None else _mark(item)

    def put(self, mark: Mark, *, after: Mark | None) -> None:
        """As the port says. A retry that finds its own write has succeeded: the token tells it."""
        if after is not None and (after.name != mark.name or mark.position < after.position):
            if after.name != mark.name:
                raise ConditionFailed(f"the anchor of {mark.name} has moved", index=0)
            raise InvalidRequest(f"an anchor never goes back: {after.position} to {mark.position}")
        body, token = _text(mark), uuid.uuid4().hex
        if len(body) > BODY_MAX_BYTES:
            raise InvalidRequest(f"an anchor holds at most {BODY_MAX_BYTES} bytes")
        request: dict[str, Any] = {
            "TableName": self._table,
            "Item": _key(mark.name) | {"n": {"N": str(mark.position)}, "b": {"S": body}, "w": {"S": token}},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if after is None:
            request["ConditionExpression"] = "attribute_not_exists(pk)"
        else:
            request["ConditionExpression"] = "n = :n AND b = :b"
            request["ExpressionAttributeValues"] = {
                ":n": {"N": str(after.position)},
                ":b": {"S": _text(after)},
            }
        with aws_errors_made_ours(_STORE):
            try:
                self._client.put_item(**request)
            except ClientError as error:
                if error_code(error) != "ConditionalCheckFailedException":
                    raise
                if error.response.get("Item", {}).get("w") == {"S": token}:
                    return
                raise ConditionFailed(f"the anchor of {mark.name} has moved", index=0) from error

    def all(self) -> list[Mark]:
        marks: list[Mark] = []
        request: dict[str, Any] = {"TableName": self._table, "ConsistentRead": True}
        with aws_errors_made_ours(_STORE):
            while True:
                answer = self._client.scan(**request)
                marks += [_mark(item) for item in answer["Items"]]
                if "LastEvaluatedKey" not in answer:
                    return sorted(marks, key=lambda mark: mark.name)
                request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


def _key(name: str) -> dict[str, Any]:
    return {"pk": {"S": name}, "sk": _SORT}


def _text(mark: Mark) -> str:
    """One text for equal bodies, so that the condition can compare it."""
    return json.dumps(dict(mark.body), sort_keys=True, separators=(",", ":"))


def _mark(item: dict[str, Any]) -> Mark:
    try:
        body = json.loads(item["b"]["S"])
        if not isinstance(body, dict):
            raise TypeError("not an object")
        return Mark(item["pk"]["S"], int(item["n"]["N"]), body)
    except (KeyError, ValueError, TypeError) as error:
        raise IntegrityError("an anchor is damaged; put it back from your backup") from error
