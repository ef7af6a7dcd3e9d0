"""A role's rights by the template, and which of them the calls of its code took; nothing enforces IAM here.

What S3 and DynamoDB ask of a key, they ask with the rights of whoever calls them: it counts as the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.support.key_policies import Asked, key_rights, permitting
from tests.support.operator_calls import Call, allowed
from tests.support.templates import CORE, Template, read_template, referred, texts
from tests.support.wire_calls import OfCaller

Right = tuple[str, str]
"""An action, and the logical id of what it is done to; for a key, with the statement (Sid) of its policy."""
_VIA: Final = "kms:ViaService"
_BY_S3: Final = {"s3:GetObject": "kms:Decrypt", "s3:PutObject": "kms:GenerateDataKey"}


@dataclass(frozen=True, slots=True)
class Held:
    """The calls that a role lacks the right to, and the rights that no call took."""

    refused: set[Right]
    untaken: set[Right]


def held(caller: OfCaller, role: str, keys: Mapping[str, str]) -> Held:
    """The caller's calls as those of `role` (`Api`, `Trainer`). `keys`: logical ids by what calls name.

    Raises ValueError for a condition in the role's policy, since none is understood here.
    """
    _without_conditions(f"{role}Policy")
    calls, may = caller.calls, allowed(f"{role}Policy")
    asked = [(keys[use.key], use.action, use.asked) for use in caller.uses]
    asked += [one for call in calls for one in _behind(call)]
    refused, taken = calls - may, calls & may
    for key, action, conditions in asked:
        found = permitting(key, f"{role}Role", action, conditions)
        taken |= {(action, f"{key}/{sid}") for sid in found}
        if not found:
            refused.add((action, key))
    refused |= {("s3:PutObject", bucket) for bucket, key in caller.puts if keys.get(key) != _key_of(bucket)}
    return Held(refused, (may | key_rights(f"{role}Role")) - taken)


def of_a_function(name: str) -> dict[Right, str]:
    """What Lambda does with the role of each of its functions, with the reason."""
    return {
        **{(f"logs:{action}", f"{name}Logs"): "Lambda writes the log" for action in _LOGS},
        **{(f"xray:{action}", ""): "Lambda and X-Ray's daemon tell X-Ray" for action in _XRAY},
    }


_LOGS: Final = ("CreateLogStream", "PutLogEvents")
_XRAY: Final = ("PutTraceSegments", "PutTelemetryRecords")


def of_a_task() -> dict[Right, str]:
    """What ECS's agent does with the role of a task."""
    reason = "ECS's agent calls it for the task, with the task's role"
    return {("ecs:GetTaskProtection", ""): reason, ("ecs:UpdateTaskProtection", ""): reason}


def _behind(call: Call) -> Iterator[tuple[str, str, Asked]]:
    """What the service that is called asks of the key of what it keeps."""
    action, name = call
    service = action.partition(":")[0]
    through: dict[str, Any] = {_VIA: f"{service}.${{AWS::Region}}.amazonaws.com"}
    if service == "dynamodb":
        for asked in ("kms:Decrypt", "kms:DescribeKey"):
            yield _key_of(name), asked, through
    elif action in _BY_S3:
        arn = f"arn:${{AWS::Partition}}:s3:::{next(texts(_properties(name)['BucketName']))}"
        context = {"kms:EncryptionContextKeys": {"aws:s3:arn"}, "kms:EncryptionContext:aws:s3:arn": arn}
        yield _key_of(name), _BY_S3[action], through | context


def _key_of(name: str) -> str:
    """The key that a table or bucket is encrypted under."""
    properties = _properties(name)
    if "SSESpecification" in properties:
        found = referred(properties["SSESpecification"]["KMSMasterKeyId"])
    else:
        (rule,) = properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        found = referred(rule["ServerSideEncryptionByDefault"]["KMSMasterKeyID"])
    assert found is not None
    return found


def _properties(name: str) -> Template:
    properties: Template = _TEMPLATE["Resources"][name]["Properties"]
    return properties


_TEMPLATE: Final = read_template(CORE)


def _without_conditions(policy: str) -> None:
    for statement in _properties(policy)["PolicyDocument"]["Statement"]:
        if set(statement) != {"Effect", "Action", "Resource"} or statement["Effect"] != "Allow":
            raise ValueError(f"{policy}: {statement}")
