"""`aws SERVICE OPERATION --option value ...` as the call of boto3 that the AWS CLI would make."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
from typing import Any

from botocore import xform_name

_CLAUSE = re.compile(r'\(?\$\.(\w+) (=|!=) "([^"]*)"\)?')


def called(client: Any, operation: str, options: list[str]) -> Any:
    """The answer to one operation of a client. Raises KeyError for an operation or option that is none."""
    method = operation.replace("-", "_")
    api_name = client.meta.method_to_api_mapping[method]
    shape = client.meta.service_model.operation_model(api_name).input_shape
    members = {f"--{xform_name(name, '-')}": name for name in (shape.members if shape else {})}
    given = {
        members[name]: _typed(shape.members[members[name]].type_name, values)
        for name, values in _options(options)
    }
    answer = getattr(client, method)(**given)
    answer.pop("ResponseMetadata", None)
    return answer


def _options(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    at = 0
    while at < len(words):
        end = at + 1
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        yield words[at], words[at + 1 : end]
        at = end


def _typed(kind: str, values: list[str]) -> Any:
    if kind == "list":
        return values
    if kind == "boolean":
        assert values == []
        return True
    (value,) = values
    return int(value) if kind in ("integer", "long") else value


def matching(lines: list[str], pattern: str | None) -> list[str]:
    """The lines that a filter pattern of CloudWatch Logs lets through: fields of a JSON line, all of them.

    `{ ($.field = "text*") && ($.field != "text") }`. Raises ValueError for the rest of that language.
    """
    if pattern is None:
        return lines
    if not (pattern.startswith("{ ") and pattern.endswith(" }")):
        raise ValueError(f"a filter pattern that is not understood here: {pattern}")
    clauses = [_CLAUSE.fullmatch(text) for text in pattern[2:-2].split(" && ")]
    if None in clauses:
        raise ValueError(f"a filter pattern that is not understood here: {pattern}")
    wanted = [(one[1], one[2] == "=", one[3]) for one in clauses if one is not None]
    return [
        line
        for line in lines
        if all(fnmatch.fnmatchcase(_field(line, name), text) is equal for name, equal, text in wanted)
    ]


def _field(line: str, name: str) -> str:
    at = line.find("{")
    try:
        return str(json.loads(line[at:]).get(name, "")) if at >= 0 else ""
    except ValueError:
        return ""
