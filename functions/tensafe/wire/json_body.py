"""JSON bodies as strict models: one way to parse, and errors that name the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tensafe.contracts.errors import InvalidRequest, PayloadTooLarge

_Model = TypeVar("_Model", bound=BaseModel)
_BRANCH: Final = re.compile(
    r"(int|float|str|bool|adamw|tensafe_dp_adamw|tensafe_dp_sgd)$|(list|tuple|dict|function-\w+)\["
)
"""What pydantic puts into a path to say which type of a union it tried; no field is called so."""
_UNION_MAX: Final = 8


class RequestModel(BaseModel):
    """A request body: frozen, unknown fields refused by name, no conversion between JSON types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def parse_json(model: type[_Model], raw: bytes, *, max_bytes: int) -> _Model:
    """The body as `model`. Raises PayloadTooLarge before parsing, or InvalidRequest with the field.

    Parsed JSON takes up to 20 times the space of its text; choose `max_bytes` accordingly.
    """
    if len(raw) > max_bytes:
        raise PayloadTooLarge(
            f"the request body has {len(raw)} bytes; at most {max_bytes} are accepted", field="body"
        )
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise as_invalid_request(error) from None


def build(model: type[_Model], values: Mapping[str, Any], *, field: str) -> _Model:
    """A contract object from checked parts; its own rules become InvalidRequest under `field`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise as_invalid_request(error, field) from None


def as_invalid_request(error: ValidationError, prefix: str = "") -> InvalidRequest:
    """The first problem, with its path (`data[2].loss_fn_inputs.weights`) and never the value."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    field = _path(first["loc"], prefix)
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"{field} is not a field of this request", field=field)
    if first["type"] == "missing":
        return InvalidRequest(f"{field} is missing", field=field)
    # A value that may be of several types has one problem per type, all with the same path.
    same = [problem["msg"] for problem in problems[:_UNION_MAX] if _path(problem["loc"], prefix) == field]
    messages = dict.fromkeys(message.removeprefix("Value error, ") for message in same)
    return InvalidRequest(f"{field or 'the body'}: {' or '.join(messages)}", field=field or "body")


def _path(location: tuple[int | str, ...], prefix: str) -> str:
    path = prefix
    for part in location:
        if isinstance(part, str) and _BRANCH.match(part):
            continue
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            name = part[:64]
            path = f"{path}.{name}" if path else name
    return path
