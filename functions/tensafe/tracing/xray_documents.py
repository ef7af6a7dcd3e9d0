"""The one door to X-Ray's daemon: of a subsegment it lets out what is named here, whoever recorded more.

The SDK keeps an exception's message and stack, Powertools what a handler was asked and answered if it is told
to; either may quote a prompt, a credential or an item. Here it is names, numbers, an exception's type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Final

from aws_xray_sdk.core.emitters.udp_emitter import UDPEmitter

_PLAIN: Final = ("id", "name", "start_time", "end_time", "parent_id", "trace_id", "type", "namespace")
_FLAGS: Final = ("fault", "error", "throttle")
AWS: Final = ("operation", "region", "request_id", "table_name", "bucket_name", "queue_url")
"""Of a call of AWS. No key of an item or an object, no parameter, no part of an answer."""
ANNOTATIONS: Final = ("ColdStart", "Service", "request_id", "stream", "seq", "kind")
"""What traces are found by: identifiers that log lines hold as well, and never the tenant."""
_TEXT_MAX: Final = 200
_EARLIER: Final = re.compile(r"[0-9a-f]{16}")


class NamedFieldsEmitter:
    """What the recorder asks of its emitter. Sends nothing but `document`."""

    def __init__(self, udp: Any | None = None) -> None:  # noqa: ANN401 - the SDK has no types
        self._udp = udp or UDPEmitter()

    def send_entity(self, entity: Any) -> None:  # noqa: ANN401 - the same
        text = json.dumps(document(vars(entity)), separators=(",", ":"))
        self._udp.send_entity(SimpleNamespace(serialize=lambda: text))


def document(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What X-Ray is told of a subsegment and of those below it; `recorded` is all that the SDK
    keeps of it."""
    told = _named(recorded, _PLAIN) | {name: True for name in _FLAGS if recorded.get(name)}
    parts = {
        "annotations": _named(recorded.get("annotations", {}), ANNOTATIONS),
        "aws": _named(recorded.get("aws", {}), AWS),
        "http": _answer(recorded.get("http", {})),
        "cause": _cause(recorded.get("cause")),
        "subsegments": [document(vars(one)) for one in recorded.get("subsegments", ())],
    }
    return told | {name: part for name, part in parts.items() if part}


def _named(found: Mapping[str, Any], names: Iterable[str]) -> dict[str, str | int | float | bool]:
    return {name: found[name] for name in names if _is_plain(found.get(name))}


def _is_plain(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _TEXT_MAX)


def _answer(http: Mapping[str, Any]) -> dict[str, Any]:
    status = http.get("response", {}).get("status")
    return {"response": {"status": status}} if isinstance(status, int) else {}


def _cause(cause: object) -> object:
    """The types of the exceptions; or the id of one that a subsegment below has told already."""
    if isinstance(cause, str):
        return cause if _EARLIER.fullmatch(cause) else None
    raised = cause.get("exceptions", ()) if isinstance(cause, Mapping) else ()
    return {"exceptions": [_named(vars(one), ("id", "type", "remote")) for one in raised]} if raised else None
