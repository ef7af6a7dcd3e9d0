"""The template's roles, keys, buckets and tables: least privilege, and each rule sees its own planted bug."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import template_access as rules
from tests.support.template_access import key_statement, policy_statement, properties
from tests.support.template_buckets import public_buckets
from tests.support.templates import (
    CORE,
    OBSERVABILITY,
    TASKS,
    Template,
    listed,
    read_template,
    resources,
    texts,
)

Rule = Callable[[Template], list[str]]


@pytest.mark.parametrize("path", [CORE, TASKS, OBSERVABILITY], ids=lambda path: path.name)
def test_no_wildcard_without_a_reason(path: Any) -> None:
    assert rules.wildcards(read_template(path)) == []


def test_every_reason_is_still_needed() -> None:
    assert rules.unused_allowances(read_template(CORE), read_template(TASKS)) == []


@pytest.mark.parametrize(
    "rule",
    [
        rules.open_keys,
        rules.contexts_unchecked,
        rules.storage_keys_apart,
        public_buckets,
        rules.shared_roles,
        rules.tables_unprotected,
        rules.unencrypted_logs,
        rules.untraced_functions,
    ],
    ids=lambda rule: rule.__name__,
)
def test_the_template_keeps_the_rule(rule: Rule) -> None:
    assert rule(read_template(CORE)) == []


def test_log_groups_of_the_tasks_end_and_are_encrypted() -> None:
    assert rules.unencrypted_logs(read_template(TASKS)) == []


PLANTED: dict[str, tuple[Rule, Callable[[Template], object]]] = {
    "any action on a table": (
        rules.wildcards,
        lambda t: policy_statement(t, "ApiPolicy").update(Action="dynamodb:*"),
    ),
    "any table": (rules.wildcards, lambda t: policy_statement(t, "ApiPolicy").update(Resource="*")),
    "all objects of all buckets": (
        rules.wildcards,
        lambda t: policy_statement(t, "SamplerPolicy", 1).update(Resource="arn:aws:s3:::*"),
    ),
    "everything but": (
        rules.wildcards,
        lambda t: policy_statement(t, "ApiPolicy").pop("Action"),
    ),
    "a managed policy": (
        rules.wildcards,
        lambda t: properties(t, "ApiRole").update(
            ManagedPolicyArns=["arn:aws:iam::aws:policy/PowerUserAccess"]
        ),
    ),
    "policies that SAM writes": (
        rules.wildcards,
        lambda t: properties(t, "ApiFunction").update(Policies=["AmazonDynamoDBFullAccess"]),
    ),
    "an administrator who decrypts": (
        rules.open_keys,
        lambda t: key_statement(t, "DataKey", "Administer")["Action"].append("kms:Decrypt"),
    ),
    "a key for everybody": (
        rules.open_keys,
        lambda t: key_statement(t, "DataKey", "Administer").update(Principal="*"),
    ),
    "a signing key without its condition": (
        rules.open_keys,
        lambda t: key_statement(t, "SigningKey", "SignDigests").pop("Condition"),
    ),
    "data keys of any context": (
        rules.contexts_unchecked,
        lambda t: key_statement(t, "DataKey", "UnwrapDataKeysOfATenant")["Condition"].pop("Null"),
    ),
    "a key that S3 is asked for any bucket": (
        rules.contexts_unchecked,
        lambda t: key_statement(t, "DataKey", "ObjectsOfTheBucketThroughS3")["Condition"]["StringEquals"].pop(
            "kms:EncryptionContext:aws:s3:arn"
        ),
    ),
    "a table that cannot be made under its key": (
        rules.storage_keys_apart,
        lambda t: key_statement(t, "StorageKey", "TablesMadeThroughDynamoDB")["Action"].remove(
            "kms:ReEncryptTo"
        ),
    ),
    "a table's key that anybody in the account may use": (
        rules.storage_keys_apart,
        lambda t: key_statement(t, "StorageKey", "TablesMadeThroughDynamoDB").pop("Condition"),
    ),
    "logs that cannot be written under their key": (
        rules.storage_keys_apart,
        lambda t: key_statement(t, "StorageKey", "LogGroups")["Action"].remove("kms:GenerateDataKey"),
    ),
    "a grant that nobody may take back": (
        rules.storage_keys_apart,
        lambda t: key_statement(t, "DataKey", "Administer")["Action"].remove("kms:RevokeGrant"),
    ),
    "a public bucket": (
        public_buckets,
        lambda t: properties(t, "BlobBucket")["PublicAccessBlockConfiguration"].update(
            BlockPublicPolicy=False
        ),
    ),
    "a bucket that anybody reads": (
        public_buckets,
        lambda t: policy_statement(t, "BlobBucketPolicy").update(Effect="Allow"),
    ),
    "a bucket without TLS": (
        public_buckets,
        lambda t: properties(t, "BlobBucketPolicy")["PolicyDocument"]["Statement"].pop(0),
    ),
    "a bucket with TLS for reads alone": (
        public_buckets,
        lambda t: policy_statement(t, "BlobBucketPolicy").update(Action="s3:GetObject"),
    ),
    "a bucket whose objects need no TLS": (
        public_buckets,
        lambda t: policy_statement(t, "AdapterBucketPolicy").update(
            Resource=[{"Fn::GetAtt": ["AdapterBucket", "Arn"]}]
        ),
    ),
    "a bucket that needs TLS of one role": (
        public_buckets,
        lambda t: policy_statement(t, "BlobBucketPolicy").update(
            Principal={"AWS": {"Fn::GetAtt": ["ApiRole", "Arn"]}}
        ),
    ),
    "a bucket that refuses TLS": (
        public_buckets,
        lambda t: policy_statement(t, "BlobBucketPolicy")["Condition"]["Bool"].update(
            {"aws:SecureTransport": "true"}
        ),
    ),
    "a bucket that takes the other domain's key": (
        public_buckets,
        lambda t: policy_statement(t, "BlobBucketPolicy", 1)["Condition"]["StringNotEquals"].update(
            {"s3:x-amz-server-side-encryption-aws-kms-key-id": {"Fn::GetAtt": ["AdapterKey", "Arn"]}}
        ),
    ),
    "a bucket that takes any key": (
        public_buckets,
        lambda t: properties(t, "BlobBucketPolicy")["PolicyDocument"]["Statement"].pop(1),
    ),
    "a bucket without versions": (
        public_buckets,
        lambda t: properties(t, "BlobBucket").pop("VersioningConfiguration"),
    ),
    "two functions with one role": (
        rules.shared_roles,
        lambda t: properties(t, "SweeperFunction").update(Role={"Fn::GetAtt": ["ApiRole", "Arn"]}),
    ),
    "a role that SAM makes": (rules.shared_roles, lambda t: properties(t, "ApiFunction").pop("Role")),
    "a table without recovery": (
        rules.tables_unprotected,
        lambda t: properties(t, "AnchorTable").pop("PointInTimeRecoverySpecification"),
    ),
    "a table that goes with its stack": (
        rules.tables_unprotected,
        lambda t: t["Resources"]["ItemsTable"].pop("DeletionPolicy"),
    ),
    "a role that may not tell X-Ray": (
        rules.untraced_functions,
        lambda t: properties(t, "SweeperPolicy")["PolicyDocument"]["Statement"].pop(),
    ),
    "a function without a trace": (
        rules.untraced_functions,
        lambda t: properties(t, "ApiFunction").update(Tracing="PassThrough"),
    ),
    "a log group in clear": (rules.unencrypted_logs, lambda t: properties(t, "ApiLogs").pop("KmsKeyId")),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_seen(name: str) -> None:
    rule, plant = PLANTED[name]
    template = read_template(CORE)
    plant(template)
    assert rule(template) != []


def test_a_wildcard_of_an_instance_is_seen() -> None:
    template = read_template(TASKS)
    properties(template, "InstanceRole")["Policies"][0]["PolicyDocument"]["Statement"][0]["Action"] = "ecs:*"
    assert rules.wildcards(template) != []


def test_samplers_sign_what_they_attest() -> None:
    for sid in ("SignDigests", "ReadThePublicHalf"):
        statement = key_statement(read_template(CORE), "SigningKey", sid)
        assert {"Fn::GetAtt": ["SamplerRole", "Arn"]} in statement["Principal"]["AWS"]


def test_an_operator_opens_no_data_key_and_signs_nothing() -> None:
    template = read_template(CORE)
    named = {
        (key, statement["Sid"]): statement
        for key, properties in resources(template, "AWS::KMS::Key").items()
        for statement in rules.key_statements(properties)
        if "OperatorRole" in set(texts(statement["Principal"]))
    }
    assert set(named) == {
        ("StorageKey", "TablesThroughDynamoDB"),
        ("SigningKey", "ReadThePublicHalf"),
    }


@pytest.mark.parametrize(
    ("parameter", "roles"),
    [("OperatorArn", {"OperatorRole"}), ("PublisherArn", {"PublisherRole", "HolderPublisherRole"})],
)
def test_there_is_nobody_unless_one_is_named(parameter: str, roles: set[str]) -> None:
    template, condition = read_template(CORE), f"Has{parameter.removesuffix('Arn')}"
    assert template["Parameters"][parameter]["Default"] == ""
    assert template["Conditions"][condition] == {"Fn::Not": [{"Fn::Equals": [{"Ref": parameter}, ""]}]}
    named = {name for name, one in template["Resources"].items() if one.get("Condition") == condition}
    assert named == roles | {f"{role.removesuffix('Role')}Policy" for role in roles}
    for role in roles:
        (trust,) = properties(template, role)["AssumeRolePolicyDocument"]["Statement"]
        assert trust["Principal"] == {"AWS": {"Ref": parameter}}


def test_nobody_deletes_from_the_anchors() -> None:
    template = read_template(CORE)
    actions = {
        action
        for name in template["Resources"]
        if name.endswith("Policy") and "Roles" in properties(template, name)
        for statement in properties(template, name)["PolicyDocument"]["Statement"]
        if statement["Resource"] == {"Fn::GetAtt": ["AnchorTable", "Arn"]}
        for action in statement["Action"]
    }
    assert actions == {"dynamodb:GetItem", "dynamodb:PutItem"}


def test_what_is_deleted_leaves_the_bucket() -> None:
    (rule,) = properties(read_template(CORE), "BlobBucket")["LifecycleConfiguration"]["Rules"]
    assert rule["Status"] == "Enabled"
    assert rule["NoncurrentVersionExpiration"] == {"NoncurrentDays": 1}


BOUND_TO_CLUSTERS = {
    *("ecs:DescribeContainerInstances", "ecs:DescribeTasks", "ecs:ListTasks", "ecs:Poll", "ecs:StopTask"),
    *("ecs:StartTelemetrySession", "ecs:UpdateContainerInstancesState", "ecs:UpdateTaskProtection"),
    *("ecs:GetTaskProtection", "ecs:ListContainerInstances"),
}
"""ECS's actions that know the condition key ecs:cluster (Service Authorization Reference, Amazon ECS).

Under a key that a request does not bring ArnEquals does not match, and the call is refused.
"""


def test_conditions_on_a_cluster_stand_at_actions_that_know_them() -> None:
    bound = set()
    for path in (CORE, TASKS):
        for statement in _statements(read_template(path)):
            keys = {key for test in statement.get("Condition", {}).values() for key in test}
            if "ecs:cluster" in keys:
                bound |= set(listed(statement["Action"]))
    assert "ecs:Poll" in bound
    assert bound <= BOUND_TO_CLUSTERS
    agent_s = _statements(read_template(TASKS))
    (agent,) = [one for one in agent_s if "ecs:SubmitTaskStateChange" in listed(one["Action"])]
    assert "Condition" not in agent


def _statements(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "Effect" in node and "Action" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from _statements(one)
