"""What code calls on AWS, as IAM's actions on the template's resources, and what a role may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import pytest
from botocore.client import BaseClient

from tests.support.template_access import key_statements
from tests.support.templates import CORE, listed, read_template, texts

Call = tuple[str, str]
"""An action, and the logical id of what it is done to."""
_WRITES: Final = {
    "Put": "dynamodb:PutItem",
    "Delete": "dynamodb:DeleteItem",
    "ConditionCheck": "dynamodb:ConditionCheckItem",
}
_OF_OBJECTS: Final = frozenset({"s3:GetObject", "s3:PutObject", "s3:DeleteObject"})
"""Their resource is an object; of all others of S3 that roles have here, the bucket."""
_OF_S3: Final = {"HeadObject": "GetObject", "HeadBucket": "ListBucket", "ListObjectsV2": "ListBucket"}


class Recorded:
    """Calls by what they need, and the encryption contexts of the keys that were opened."""

    def __init__(self) -> None:
        self.calls: set[Call] = set()
        self.opened: list[Mapping[str, str]] = []

    def note(self, service: str, operation: str, given: Mapping[str, Any]) -> None:
        if service == "dynamodb" and operation == "TransactWriteItems":
            for item in given["TransactItems"]:
                ((kind, inner),) = item.items()
                self.calls.add((_WRITES[kind], _table(inner["TableName"])))
        elif (service, operation) == ("dynamodb", "BatchGetItem"):
            self.calls |= {("dynamodb:BatchGetItem", _table(name)) for name in given["RequestItems"]}
        elif service == "dynamodb":
            self.calls.add((f"dynamodb:{operation}", _table(given["TableName"])))
        elif service == "sqs":
            self.calls.add((f"sqs:{operation}", _queue(str(given.get("QueueUrl") or given["QueueName"]))))
        elif service == "s3":
            self.calls.add((f"s3:{_OF_S3.get(operation, operation)}", bucket_id(given["Bucket"])))
        elif (service, operation) == ("kms", "Decrypt"):
            self.opened.append(given["EncryptionContext"])
        else:
            self.calls.add((f"{service}:{operation}", ""))


def _table(name: str) -> str:
    return {
        "tensafe-items": "ItemsTable",
        "tensafe-anchors": "AnchorTable",
        "tensafe-adapters": "AdapterTable",
    }[name]


def _queue(url: str) -> str:
    name = url.rpartition("/")[2].removesuffix(".fifo")
    return f"{'Train' if 'train-' in name else 'Sample'}{'Dead' if name.endswith('-dead') else ''}Queue"


def bucket_id(name: str) -> str:
    """The logical id of a bucket of the tests."""
    return "AdapterBucket" if "adapter" in name else "BlobBucket"


@contextmanager
def recorded() -> Iterator[Recorded]:
    """Every call of boto3 in the block, and in this process."""
    found = Recorded()
    call = BaseClient._make_api_call  # type: ignore[attr-defined]

    def noted(client: Any, operation: str, given: dict[str, Any]) -> Any:
        found.note(client.meta.service_model.service_name, operation, given)
        return call(client, operation, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseClient, "_make_api_call", noted)
        yield found


def allowed(policy: str = "OperatorPolicy") -> set[Call]:
    """What a policy allows, one action on one resource each; a resource that has no logical id is ''."""
    template = read_template(CORE)
    found = set[Call]()
    for statement in template["Resources"][policy]["Properties"]["PolicyDocument"]["Statement"]:
        for resource in listed(statement["Resource"]):
            words = list(texts(resource))
            named = {one for one in template["Resources"] if any(_names(word, one) for word in words)}
            of_objects = any(word.endswith("/*") for word in words)
            found |= {
                (action, _on(action, name, of_objects=of_objects))
                for action in statement["Action"]
                for name in named or {""}
            }
    return found


def _on(action: str, name: str, *, of_objects: bool) -> str:
    """The logical id; something else where S3 knows the action on the other of bucket and objects alone."""
    if not action.startswith("s3:") or (action in _OF_OBJECTS) == of_objects:
        return name
    return f"{name}/*" if of_objects else f"{name} itself"


def may_use(key: str, action: str) -> set[str]:
    """The roles that a key's policy lets do this, as it names them."""
    statements = key_statements(read_template(CORE)["Resources"][key]["Properties"])
    named = [set(texts(one["Principal"])) for one in statements if action in one["Action"]]
    return {name for names in named for name in names if name.endswith("Role")}


def _names(text: str, logical_id: str) -> bool:
    return text == logical_id or text.startswith(f"${{{logical_id}.")
