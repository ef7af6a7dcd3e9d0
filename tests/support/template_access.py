"""Who may do what by the templates, and what is kept from everybody: each rule returns what breaks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.support.templates import Template, listed, referred, resources, texts

ALLOWED: Final[dict[tuple[str, str], str]] = {
    ("xray:PutTraceSegments", "*"): "X-Ray knows no resources",
    ("xray:PutTelemetryRecords", "*"): "X-Ray knows no resources",
    ("ecr:GetAuthorizationToken", "*"): "a token for the account's registry; what is pulled is named",
    ("ecs:DiscoverPollEndpoint", "*"): "ECS has no resource for it",
    **{
        (f"ecs:{action}", "*"): "the agent's own calls, bound to this cluster by a condition"
        for action in (
            "Poll",
            "StartTelemetrySession",
        )
    },
    (
        "ecs:UpdateContainerInstancesState",
        "*",
    ): "the agent and operators, bound to this cluster by a condition",
    ("ecs:ListTasks", "*"): "operators, bound to this cluster by a condition",
    **{
        (action, "*"): "AWS knows no resources for it; it reads, and tells counts and names"
        for action in (
            "lambda:GetAccountSettings",
            "lambda:ListEventSourceMappings",
            "ecs:DescribeCapacityProviders",
            "application-autoscaling:DescribeScalingActivities",
            "autoscaling:DescribeScalingActivities",
        )
    },
    (
        "lambda:UpdateEventSourceMapping",
        "arn:${AWS::Partition}:lambda:${AWS::Region}:${AWS::AccountId}:event-source-mapping:*",
    ): "operators, bound to the dead letters' function by a condition; a mapping's id is made as it comes",
    (
        "logs:FilterLogEvents",
        "arn:${AWS::Partition}:logs:${AWS::Region}:${AWS::AccountId}:log-group:/${ServiceName}/*",
    ): "the log groups of this deployment, which hold no data of tenants",
    **{
        (
            f"s3:{action}",
            f"${{{bucket}.Arn}}/*",
        ): "the objects of one bucket; keys are made as they come"
        for action in ("GetObject", "PutObject", "DeleteObject")
        for bucket in ("BlobBucket", "AdapterBucket")
    },
    (
        "s3:GetObject",
        "arn:${AWS::Partition}:s3:::${ModelsBucket}/${ModelsPrefix}/*",
    ): "the files of the models",
    **{
        (
            f"ecs:{action}",
            "arn:${AWS::Partition}:ecs:${AWS::Region}:${AWS::AccountId}:task/${ServiceName}/*",
        ): ("the tasks of one cluster, whose ids are made as they start")
        for action in ("GetTaskProtection", "UpdateTaskProtection")
    },
    **{
        (
            f"ecr:{action}",
            "arn:${AWS::Partition}:ecr:${AWS::Region}:${AWS::AccountId}:repository/${ServiceName}/*",
        ): ("the repositories of this deployment's images")
        for action in ("BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer")
    },
}
"""Every (action, resource) with a wildcard that a role may have, and why."""
KEY_ADMINISTRATION: Final = frozenset({"Administer", "TablesMadeThroughDynamoDB"})
"""Statements of key policies that name the account: IAM decides in it."""


def wildcards(template: Template) -> list[str]:
    """Actions or resources with a wildcard that nobody gave a reason for; NotAction and NotResource too."""
    return [
        f"{name}: {action} on {resource}"
        for name, statement in role_statements(template)
        for action, resource in _pairs(statement)
        if "*" in action + resource and (action, resource) not in ALLOWED
    ]


def unused_allowances(*templates: Template) -> list[str]:
    """Entries of ALLOWED that no role has any more."""
    found = {
        pair
        for template in templates
        for _, statement in role_statements(template)
        for pair in _pairs(statement)
    }
    return [f"{action} on {resource}" for action, resource in ALLOWED if (action, resource) not in found]


def role_statements(template: Template) -> Iterator[tuple[str, Template]]:
    """What roles are allowed, with the logical id of the policy or role that says so."""
    for name, one in template["Resources"].items():
        properties = one.get("Properties", {})
        if one["Type"] in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
            yield from _statements(name, properties["PolicyDocument"])
        if one["Type"] == "AWS::IAM::Role":
            for arn in properties.get("ManagedPolicyArns", []):
                yield name, {"Effect": "Allow", "Action": "*", "Resource": str(arn)}
            for policy in properties.get("Policies", []):
                # !If [condition, policy, AWS::NoValue]
                policy = policy["Fn::If"][1] if "Fn::If" in policy else policy  # noqa: PLW2901
                yield from _statements(name, policy["PolicyDocument"])
        if one["Type"] == "AWS::Serverless::Function" and "Policies" in properties:
            yield name, {"Effect": "Allow", "Action": "*", "Resource": "what SAM's policy templates say"}


def _statements(name: str, document: Template) -> Iterator[tuple[str, Template]]:
    for statement in listed(document["Statement"]):
        yield name, statement


def _pairs(statement: Template) -> Iterator[tuple[str, str]]:
    for action in listed(statement.get("Action", "*")):
        for resource in listed(statement.get("Resource", "*")):
            text = resource if isinstance(resource, str) else " ".join(texts(resource))
            yield action, text


def key_statements(key: Template) -> list[Template]:
    """The statements of a key's policy, those behind a condition of the template too."""
    return [one["Fn::If"][1] if "Fn::If" in one else one for one in key["KeyPolicy"]["Statement"]]


def properties(template: Template, name: str) -> Any:
    """Of the resource with this logical id, to be changed by a planted bug."""
    return template["Resources"][name]["Properties"]


def policy_statement(template: Template, policy: str, index: int = 0) -> Any:
    """One statement of a policy."""
    return properties(template, policy)["PolicyDocument"]["Statement"][index]


def key_statement(template: Template, key: str, sid: str) -> Any:
    """One statement of a key's policy."""
    return next(one for one in key_statements(properties(template, key)) if one["Sid"] == sid)


def open_keys(template: Template) -> list[str]:
    """Key policies that let somebody use a key without a condition, or let an administrator use it."""
    wrong = []
    for name, properties in resources(template, "AWS::KMS::Key").items():
        for statement in key_statements(properties):
            use = [action for action in statement["Action"] if _is_use(action)]
            where = f"{name}/{statement['Sid']}"
            if any("*" in action for action in statement["Action"]) or "*" in listed(statement["Principal"]):
                wrong.append(f"{where}: a wildcard")
            if statement["Sid"] == "Administer" and use:
                wrong.append(f"{where}: {', '.join(use)} is use")
            if use and "Condition" not in statement:
                wrong.append(f"{where}: use without a condition")
            if _names_the_account(statement) and statement["Sid"] not in KEY_ADMINISTRATION:
                wrong.append(f"{where}: names the whole account")
    return wrong


def _is_use(action: str) -> bool:
    return action in ("kms:*", "*") or action.startswith(
        ("kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey", "kms:ReEncrypt", "kms:Sign", "kms:CreateGrant")
    )


def _names_the_account(statement: Template) -> bool:
    return any(text.endswith(":root") for text in texts(statement["Principal"]))


BY_LOGS: Final = frozenset(
    f"kms:{action}"
    for action in (
        *("Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "DescribeKey"),
        *("GenerateDataKey", "GenerateDataKeyWithoutPlaintext"),
    )
)
"""What CloudWatch Logs must be let ("Encrypt log data in CloudWatch Logs using AWS KMS")."""
BY_DYNAMODB: Final = BY_LOGS | {"kms:CreateGrant"}
"""What whoever makes a table must be let, on its key and through DynamoDB.

The Developer Guide, "Key policy for a customer managed key". Whoever uses the table has its key decrypted.
"""
_THROUGH_DYNAMODB: Final = {
    "StringEquals": {"kms:ViaService": {"Fn::Sub": "dynamodb.${AWS::Region}.amazonaws.com"}}
}
_LOGS: Final = {"Service": {"Fn::Sub": "logs.${AWS::Region}.amazonaws.com"}}


def storage_keys_apart(template: Template) -> list[str]:
    """Keys of tables and log groups whose policies do not let the two services do what AWS says they need.

    And keys whose administrators cannot look at the grants that services were given, and take one back.
    """
    wrong = []
    keys = resources(template, "AWS::KMS::Key")
    for name in keys:
        administer = key_statement(template, name, "Administer")["Action"]
        needed = ("kms:ListGrants", "kms:RevokeGrant")
        wrong += [f"{name}: nobody may {one}" for one in needed if one not in administer]
    tables = resources(template, "AWS::DynamoDB::Table").values()
    for name in {str(referred(one["SSESpecification"]["KMSMasterKeyId"])) for one in tables}:
        may = _let(
            keys[name], lambda one: _names_the_account(one) and one.get("Condition") == _THROUGH_DYNAMODB
        )
        wrong += [f"{name}: through DynamoDB, {one}" for one in sorted(BY_DYNAMODB ^ may)]
    logs = resources(template, "AWS::Logs::LogGroup").values()
    for name in {str(referred(one["KmsKeyId"])) for one in logs}:
        may = _let(keys[name], lambda one: bool(one["Principal"] == _LOGS))
        wrong += [f"{name}: CloudWatch Logs, {one}" for one in sorted(BY_LOGS ^ may)]
    return wrong


def _let(key: Template, chosen: Callable[[Template], bool]) -> set[str]:
    """The actions of those statements of a key's policy."""
    return {action for one in key_statements(key) if chosen(one) for action in one["Action"]}


def contexts_unchecked(template: Template) -> list[str]:
    """Keys of data keys that can be used with another encryption context than the vault's."""
    wrong = []
    for name in ("DataKey", "AdapterKey"):
        for statement in key_statements(template["Resources"][name]["Properties"]):
            if not any(_is_use(action) for action in statement["Action"]):
                continue
            condition = statement.get("Condition", {})
            through_s3 = "kms:ViaService" in condition.get("StringEquals", {})
            bound = (
                condition.get("StringEquals", {}).get("kms:EncryptionContext:purpose") == "tensafe-data-key"
                and _is_named(condition, "tenant")
                and _is_named(condition, "scope")
                and sorted(
                    condition.get("ForAllValues:StringEquals", {}).get("kms:EncryptionContextKeys", [])
                )
                == ["purpose", "scope", "tenant"]
            )
            if not bound and not (
                through_s3 and "kms:EncryptionContext:aws:s3:arn" in condition.get("StringEquals", {})
            ):
                wrong.append(f"{name}/{statement['Sid']}")
    return wrong


def _is_named(condition: Template, part: str) -> bool:
    """Whether a context without this part is refused."""
    name = f"kms:EncryptionContext:{part}"
    compared = condition.get("StringEquals", {}) | condition.get("StringLike", {})
    return condition.get("Null", {}).get(name) == "false" or name in compared


def shared_roles(template: Template) -> list[str]:
    """Functions that share a role, or leave it to SAM to make one."""
    functions = resources(template, "AWS::Serverless::Function")
    roles = {name: referred(one.get("Role")) for name, one in functions.items()}
    counted = Counter(roles.values())
    return [f"{name}: {role}" for name, role in roles.items() if role is None or counted[role] > 1]


def untraced_functions(template: Template) -> list[str]:
    """Functions of which X-Ray is not told, or whose role may not tell it."""
    tell = {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}
    allowed: dict[str, set[str]] = {}
    for policy in resources(template, "AWS::IAM::Policy").values():
        actions = {
            one for part in policy["PolicyDocument"]["Statement"] for one in listed(part.get("Action", []))
        }
        for role in policy["Roles"]:
            allowed.setdefault(str(referred(role)), set()).update(actions)
    everywhere = template["Globals"]["Function"].get("Tracing")
    return [
        name
        for name, one in resources(template, "AWS::Serverless::Function").items()
        if one.get("Tracing", everywhere) != {"Ref": "Tracing"}
        or not tell <= allowed.get(str(referred(one["Role"])), set())
    ]


def tables_unprotected(template: Template) -> list[str]:
    """Tables without point-in-time recovery, encryption under our key, or protection from deletion."""
    wrong = []
    for name, table in resources(template, "AWS::DynamoDB::Table").items():
        if table.get("PointInTimeRecoverySpecification", {}).get("PointInTimeRecoveryEnabled") is not True:
            wrong.append(f"{name}: no point-in-time recovery")
        if table.get("SSESpecification", {}).get("SSEType") != "KMS":
            wrong.append(f"{name}: not encrypted under KMS")
        if (
            "DeletionProtectionEnabled" not in table
            or template["Resources"][name].get("DeletionPolicy") != "Retain"
        ):
            wrong.append(f"{name}: can be deleted")
        if [key["AttributeName"] for key in table["KeySchema"]] != ["pk", "sk"]:
            wrong.append(f"{name}: other keys")
    return wrong


def unencrypted_logs(*templates: Template) -> list[str]:
    """Log groups without a key or an end."""
    return [
        name
        for template in templates
        for name, group in resources(template, "AWS::Logs::LogGroup").items()
        if "KmsKeyId" not in group or "RetentionInDays" not in group
    ]
