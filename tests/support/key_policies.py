"""Whether a key's policy in the template lets a role call KMS with an encryption context."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from tests.support.template_access import key_statements
from tests.support.templates import CORE, read_template, texts

_CONTEXT = "kms:EncryptionContext:"
_KEYS = "kms:EncryptionContextKeys"


def permits(key: str, role: str, action: str, context: Mapping[str, str]) -> bool:
    """For a call of the role's own; what a service asks for it (`kms:ViaService`) is another thing.

    Raises ValueError for a condition that is not understood here.
    """
    return any(
        role in texts(statement["Principal"])
        and action in statement["Action"]
        and all(
            _holds(operator, name, wanted, context)
            for operator, conditions in statement.get("Condition", {}).items()
            for name, wanted in conditions.items()
        )
        for statement in key_statements(read_template(CORE)["Resources"][key]["Properties"])
    )


def _holds(operator: str, name: str, wanted: Any, context: Mapping[str, str]) -> bool:
    if name == "kms:ViaService" or name.startswith(f"{_CONTEXT}aws:"):
        return False
    if operator == "ForAllValues:StringEquals" and name == _KEYS:
        return set(context) <= set(wanted)
    if operator == "StringEquals" and name.startswith(_CONTEXT):
        return context.get(name.removeprefix(_CONTEXT)) == wanted
    if operator == "StringLike" and name.startswith(_CONTEXT):
        return fnmatchcase(context.get(name.removeprefix(_CONTEXT), ""), wanted)
    if operator == "Null" and name.startswith(_CONTEXT):
        return (name.removeprefix(_CONTEXT) not in context) == (wanted == "true")
    raise ValueError(f"{operator} {name}")
