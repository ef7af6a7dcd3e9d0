"""Which statements of a key's policy in the template let a role call KMS as it asks."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from tests.support.template_access import key_statements
from tests.support.templates import CORE, listed, read_template, texts

Asked = Mapping[str, Any]
"""What a call says of itself, by IAM's condition keys."""
_CONTEXT: Final = "kms:EncryptionContext:"
_KEYS: Final = "kms:EncryptionContextKeys"


def of_context(context: Mapping[str, str]) -> dict[str, Any]:
    """The condition keys of a call with this encryption context."""
    return {_KEYS: set(context), **{f"{_CONTEXT}{name}": value for name, value in context.items()}}


def permits(key: str, role: str, action: str, context: Mapping[str, str]) -> bool:
    """For a call of the role's own; what a service asks for it (`kms:ViaService`) is another thing.

    Raises ValueError for a condition that is not understood here.
    """
    return bool(permitting(key, role, action, of_context(context)))


def permitting(key: str, role: str, action: str, asked: Asked) -> set[str]:
    """The names (Sid) of the statements that permit it. Raises as `permits`."""
    return {
        sid
        for sid, conditions in _statements(key, role, action)
        if all(
            _holds(operator, name, next(texts(wanted)) if isinstance(wanted, dict) else wanted, asked)
            for operator, named in conditions.items()
            for name, wanted in named.items()
        )
    }


def key_rights(role: str) -> set[tuple[str, str]]:
    """An action, and the key and statement that let the role make it, for all that name the role."""
    template = read_template(CORE)
    return {
        (action, f"{name}/{statement['Sid']}")
        for name, one in template["Resources"].items()
        if one["Type"] == "AWS::KMS::Key"
        for statement in key_statements(one["Properties"])
        if role in texts(statement["Principal"])
        for action in statement["Action"]
    }


def _statements(key: str, role: str, action: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (statement["Sid"], statement.get("Condition", {}))
        for statement in key_statements(read_template(CORE)["Resources"][key]["Properties"])
        if role in texts(statement["Principal"]) and action in statement["Action"]
    ]


def _holds(operator: str, name: str, wanted: Any, asked: Asked) -> bool:
    if operator == "ForAllValues:StringEquals" and name == _KEYS:
        return set(asked.get(_KEYS, ())) <= set(wanted)
    if operator == "StringEquals":
        return bool(asked.get(name) == wanted)
    if operator == "StringLike":
        return any(fnmatchcase(asked.get(name, ""), one) for one in listed(wanted))
    if operator == "Null":
        return (name not in asked) == (wanted == "true")
    raise ValueError(f"{operator} {name}")
