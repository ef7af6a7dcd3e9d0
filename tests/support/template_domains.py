"""The two trust domains in the templates, which no role connects, and the keys of what a role reaches."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Final

from tests.support.template_access import key_statements, role_statements
from tests.support.templates import Template, listed, referred, resources, texts

HOLDERS: Final = frozenset({"AdapterTable", "AdapterBucket", "AdapterKey"})
"""What belongs to the adapter holder, in template.yaml."""
SERVICES: Final = frozenset(
    {"ItemsTable", "AnchorTable", "BlobBucket", "DataKey", "SigningKey", "TrainQueue", "SampleQueue"}
)
"""What belongs to the service."""
ROLES_OF_HOLDER: Final = frozenset({"AdapterHolderRole", "HolderPublisherRole"})
"""Roles of the adapter holder's side; every other one is of the service's."""
KEYS: Final = {"BlobBucket": "DataKey", "AdapterBucket": "AdapterKey"}
"""A bucket's objects are encrypted under this key."""
_PUBLISHES: Final = {"HolderPublisherRole": frozenset({"kms:GenerateDataKey"})}
"""All that a role may do with its domain's keys, where that is not everything."""


def domains_crossed(core: Template, tasks: Template) -> list[str]:
    """Where the service may use what is the adapter holder's, or the adapter holder what is the service's."""
    wrong = []
    for role, reached in _reached(core).items():
        foreign = SERVICES if role in ROLES_OF_HOLDER else HOLDERS
        wrong += [f"{role}: {one}" for one in sorted(set(reached) & foreign)]
        for name, actions in reached.items():
            if name in resources(core, "AWS::KMS::Key") and role in _PUBLISHES:
                more = actions - _PUBLISHES[role]
                wrong += [f"{role}: {one} of {name}" for one in sorted(more) if name in HOLDERS]
    for name, one in resources(core, "AWS::KMS::Key").items():
        for statement in key_statements(one):
            # Whoever publishes assumes a role on each side, and is nobody to a key.
            if "PublisherArn" in _named(statement["Principal"]):
                wrong.append(f"{name}/{statement['Sid']}: a person")
    handed = core["Resources"]["Tasks"]["Properties"]["Parameters"]
    for name, task in resources(tasks, "AWS::ECS::TaskDefinition").items():
        named = _named([container["Environment"] for container in task["ContainerDefinitions"]])
        told = {one for parameter in named & set(handed) for one in _named(handed[parameter])}
        foreign = SERVICES if name.startswith("AdapterHolder") else HOLDERS
        wrong += [f"{name}: {one}" for one in sorted(told & foreign)]
    return wrong


def keys_apart(core: Template) -> list[str]:
    """Roles that use a bucket's objects or a table without its key, or have the key without those."""
    wrong, reached = [], _reached(core)
    for bucket, key in KEYS.items():
        for object_action, action in (
            ("s3:GetObject", "kms:Decrypt"),
            ("s3:PutObject", "kms:GenerateDataKey"),
        ):
            theirs = {role for role, named in reached.items() if object_action in named.get(bucket, ())}
            may = _through(core, key, "s3", action)
            wrong += [
                f"{role}: {object_action} of {bucket} and not {action}" for role in sorted(theirs - may)
            ]
            wrong += [f"{role}: {action} through S3 and not {object_action}" for role in sorted(may - theirs)]
    tables = set(resources(core, "AWS::DynamoDB::Table"))
    theirs = {role for role, named in reached.items() if tables & set(named)}
    may = _through(core, "StorageKey", "dynamodb", "kms:Decrypt")
    return wrong + [f"{role}: a table without its key, or the key alone" for role in sorted(theirs ^ may)]


def _reached(core: Template) -> dict[str, dict[str, set[str]]]:
    """Role -> resource -> actions, by policies of roles and by the policies of keys."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    roles_of = {
        name: {str(referred(role)) for role in one["Roles"]}
        for name, one in resources(core, "AWS::IAM::Policy").items()
    }
    for name, statement in role_statements(core):
        for role in roles_of.get(name, {name}):
            for resource in _named(statement.get("Resource", [])):
                found[role][resource] |= set(listed(statement.get("Action", [])))
    for name, key in resources(core, "AWS::KMS::Key").items():
        for statement in key_statements(key):
            for role in _roles(statement):
                found[role][name] |= set(statement["Action"])
    return found


def _through(core: Template, key: str, service: str, action: str) -> set[str]:
    """Roles for which this service may use a key."""
    return {
        role
        for statement in key_statements(core["Resources"][key]["Properties"])
        if action in statement["Action"]
        and any(
            text.startswith(f"{service}.")
            for text in texts(
                statement.get("Condition", {}).get("StringEquals", {}).get("kms:ViaService", "")
            )
        )
        for role in _roles(statement)
    }


def _roles(statement: Template) -> set[str]:
    return {one for one in _named(statement["Principal"]) if one.endswith("Role")}


def _named(value: object) -> set[str]:
    """Logical ids and parameters that `value` refers to, however deep."""
    if isinstance(value, list):
        return {name for one in value for name in _named(one)}
    if not isinstance(value, dict):
        return set()
    found = {referred(value)} if len(value) == 1 else set()
    for key, inner in value.items():
        if key == "Fn::Sub":
            found |= {
                one.partition(".")[0] for text in texts(inner) for one in re.findall(r"\$\{([^}!]+)\}", text)
            }
        found |= _named(inner)
    return {one for one in found if isinstance(one, str)}
