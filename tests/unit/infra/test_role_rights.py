"""Recorded calls are held to the template: a call beyond the role is seen, and a right that no call takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import key_policies, operator_calls
from tests.support.key_policies import of_context
from tests.support.role_rights import held, of_a_function
from tests.support.template_access import key_statement, policy_statement
from tests.support.templates import CORE, Template, read_template
from tests.support.wire_calls import KeyUse, OfCaller

KEYS = {"data": "DataKey", "signing": "SigningKey"}
CONTEXT = {"tenant": "acme", "scope": "stream/r", "purpose": "tensafe-data-key"}
DIGEST = {"kms:MessageType": "DIGEST", "kms:SigningAlgorithm": "ECDSA_SHA_256"}


def a_use(action: str, key: str = "data", context: dict[str, str] = CONTEXT, **more: str) -> KeyUse:
    return KeyUse(key, action, context, {**of_context(context), **more})


def the_api() -> OfCaller:
    """One of each thing that the API's role is for."""
    caller = OfCaller()
    for write in ("Put", "Delete", "ConditionCheck"):
        caller.recorded.note(
            "dynamodb", "TransactWriteItems", {"TransactItems": [{write: {"TableName": "tensafe-items"}}]}
        )
    for operation, table in (
        ("GetItem", "items"),
        ("Query", "items"),
        ("GetItem", "anchors"),
        ("PutItem", "anchors"),
    ):
        caller.recorded.note("dynamodb", operation, {"TableName": f"tensafe-{table}"})
    for operation in ("GetObject", "PutObject", "DeleteObject", "HeadBucket"):
        caller.recorded.note("s3", operation, {"Bucket": "tensafe-blobs"})
    for operation in ("SendMessage", "GetQueueUrl", "GetQueueAttributes"):
        for queue in ("train-x.fifo", "sample-x"):
            caller.recorded.note("sqs", operation, {"QueueUrl": f"https://sqs/1/ts-{queue}"})
    caller.puts.add(("BlobBucket", "data"))
    caller.uses += [
        a_use("kms:GenerateDataKey"),
        a_use("kms:Decrypt"),
        a_use("kms:GetPublicKey", "signing", {}),
    ]
    caller.uses.append(KeyUse("signing", "kms:Sign", {}, DIGEST))
    return caller


def test_what_the_role_is_for_is_all_of_it() -> None:
    found = held(the_api(), "Api", KEYS)
    assert (found.refused, found.untaken) == (set(), set(of_a_function("Api")))


def noted(service: str, operation: str, **given: Any) -> Callable[[OfCaller], object]:
    return lambda caller: caller.recorded.note(service, operation, given)


def used(*uses: KeyUse) -> Callable[[OfCaller], object]:
    return lambda caller: caller.uses.extend(uses)


BEYOND: dict[str, tuple[Callable[[OfCaller], object], set[tuple[str, str]]]] = {
    "another table": (
        noted("dynamodb", "GetItem", TableName="tensafe-adapters"),
        {("dynamodb:GetItem", "AdapterTable")},
    ),
    "another action": (
        noted("dynamodb", "Scan", TableName="tensafe-items"),
        {("dynamodb:Scan", "ItemsTable")},
    ),
    "a dead queue": (
        noted("sqs", "GetQueueAttributes", QueueUrl="https://sqs/1/ts-train-x-dead.fifo"),
        {("sqs:GetQueueAttributes", "TrainDeadQueue")},
    ),
    "another bucket, and its key through S3": (
        noted("s3", "GetObject", Bucket="tensafe-adapters"),
        {("s3:GetObject", "AdapterBucket"), ("kms:Decrypt", "AdapterKey")},
    ),
    "an object under another key": (
        lambda caller: caller.puts.add(("BlobBucket", "")),
        {("s3:PutObject", "BlobBucket")},
    ),
    "a data key of no tenant": (
        used(a_use("kms:Decrypt", context={"scope": "stream/r", "purpose": "tensafe-data-key"})),
        {("kms:Decrypt", "DataKey")},
    ),
    "a data key for something else": (
        used(a_use("kms:GenerateDataKey", context=CONTEXT | {"purpose": "other"})),
        {("kms:GenerateDataKey", "DataKey")},
    ),
    "a part of the context that is not ours": (
        used(a_use("kms:Decrypt", context=CONTEXT | {"more": "x"})),
        {("kms:Decrypt", "DataKey")},
    ),
    "a text that is signed": (
        used(KeyUse("signing", "kms:Sign", {}, DIGEST | {"kms:MessageType": "RAW"})),
        {("kms:Sign", "SigningKey")},
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_call_beyond_the_role_is_seen(name: str) -> None:
    call, refused = BEYOND[name]
    caller = the_api()
    call(caller)
    assert held(caller, "Api", KEYS).refused == refused


def statement(index: int, **changed: Any) -> Callable[[Template], object]:
    return lambda template: policy_statement(template, "ApiPolicy", index).update(changed)


def without(key: str, sid: str) -> Callable[[Template], object]:
    return lambda template: key_statement(template, key, sid)["Principal"].update(AWS=[])


ITEMS, OBJECTS = 0, 2
PLANTED: dict[str, tuple[Callable[[Template], object], set[tuple[str, str]], set[tuple[str, str]]]] = {
    "an action that is missing": (
        statement(OBJECTS, Action=["s3:GetObject", "s3:PutObject"]),
        {("s3:DeleteObject", "BlobBucket")},
        set(),
    ),
    "an action too many": (
        statement(OBJECTS, Action=["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:PutObjectAcl"]),
        set(),
        {("s3:PutObjectAcl", "BlobBucket/*")},
    ),
    "a table too many": (
        statement(ITEMS, Resource=[{"Fn::GetAtt": [f"{name}Table", "Arn"]} for name in ("Items", "Adapter")]),
        set(),
        {
            (f"dynamodb:{action}", "AdapterTable")
            for action in ("GetItem", "Query", "PutItem", "DeleteItem", "ConditionCheckItem")
        },
    ),
    "objects that are said to be the bucket": (
        statement(OBJECTS, Resource={"Fn::GetAtt": ["BlobBucket", "Arn"]}),
        {(f"s3:{action}", "BlobBucket") for action in ("GetObject", "PutObject", "DeleteObject")},
        {(f"s3:{action}", "BlobBucket itself") for action in ("GetObject", "PutObject", "DeleteObject")},
    ),
    "a key that does not know the role": (
        without("DataKey", "ObjectsOfTheBucketThroughS3"),
        {("kms:GenerateDataKey", "DataKey"), ("kms:Decrypt", "DataKey")},
        set(),
    ),
    "a table's key that does not": (
        without("StorageKey", "TablesThroughDynamoDB"),
        {("kms:Decrypt", "StorageKey"), ("kms:DescribeKey", "StorageKey")},
        set(),
    ),
    "a use of a key too many": (
        lambda template: key_statement(template, "DataKey", "UnwrapDataKeysOfATenant")["Action"].append(
            "kms:ReEncryptFrom"
        ),
        set(),
        {("kms:ReEncryptFrom", "DataKey/UnwrapDataKeysOfATenant")},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_of_the_template_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, refused, untaken = PLANTED[name]
    template = read_template(CORE)
    plant(template)
    for module in (key_policies, operator_calls):
        monkeypatch.setattr(module, "read_template", lambda _: template)
    found = held(the_api(), "Api", KEYS)
    assert (found.refused, found.untaken - set(of_a_function("Api"))) == (refused, untaken)


def test_a_condition_of_a_role_s_own_policy_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="OperatorPolicy"):
        held(the_api(), "Operator", KEYS)
