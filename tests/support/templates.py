"""template.yaml and infra/*.yaml as data: the intrinsic functions stay what they are, as one-key mappings."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.project_files import ROOT
from tools.aws_local.template import Template, load_template

__all__ = [
    "CORE",
    "OBSERVABILITY",
    "TASKS",
    "Template",
    "listed",
    "read_template",
    "referred",
    "resources",
    "texts",
]
CORE = ROOT / "template.yaml"
TASKS = ROOT / "infra/tasks.yaml"
OBSERVABILITY = ROOT / "infra/observability.yaml"


@cache
def _read(path: Path) -> Template:
    return load_template(path)


def read_template(path: Path) -> Template:
    """A copy that the caller may change."""
    return copy.deepcopy(_read(path))


def resources(template: Template, kind: str) -> dict[str, Template]:
    """Properties of the resources of a type, by logical id."""
    return {
        name: one.get("Properties", {}) for name, one in template["Resources"].items() if one["Type"] == kind
    }


def listed(value: Any) -> list[Any]:
    """A list; CloudFormation lets one thing stand for a list of it."""
    return value if isinstance(value, list) else [value]


def texts(value: Any) -> Iterator[str]:
    """Every string in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def referred(value: Any) -> str | None:
    """The logical id that `!Ref` or `!GetAtt` names; None for anything else."""
    if not isinstance(value, dict):
        return None
    name = value.get("Ref") or value.get("Fn::GetAtt")
    return name[0] if isinstance(name, list) else name
