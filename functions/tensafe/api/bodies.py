"""Reading request bodies: capped as they arrive, parsed once the caller is known, never before.

A body that may be large is parsed in a thread.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

from fastapi import Request
from pydantic import BaseModel

from tensafe.api.context import Context
from tensafe.contracts.errors import PayloadTooLarge
from tensafe.wire.json_body import parse_json

JSON_MAX_BYTES: Final = 512 * 1024
"""Of any other JSON body."""
DATA_MAX_BYTES: Final = 8 * 1024 * 1024
"""Of a JSON body with a prompt or training data: a million tokens fit. Parsed, it takes 20 times that."""
_MAX_NAMES: Final = 50_000
_NAME_END: Final = re.compile(rb'"\s*:')
_AT_ONCE_BYTES: Final = 32 * 1024
"""What is parsed before a thread would have been woken: a millisecond of the loop at most."""
_Body = TypeVar("_Body", bound=BaseModel)


async def read(
    model: type[_Body], request: Request, context: Context, *, max_bytes: int = JSON_MAX_BYTES
) -> _Body:
    """The JSON body as `model`. Raises InvalidRequest with the field, PayloadTooLarge."""
    raw = await context.body(request, max_bytes=max_bytes)
    if len(raw) > _AT_ONCE_BYTES:
        return await context.call(parse, model, raw, max_bytes=max_bytes)
    return parse(model, raw, max_bytes=max_bytes)


def parse(model: type[_Body], raw: bytes, *, max_bytes: int = JSON_MAX_BYTES) -> _Body:
    """JSON as `model`.

    A wrong value in an object costs pydantic a thousand times its own space to report, and it reports
    all of them: no request of this service has so many names.
    """
    if raw.count(b":") > _MAX_NAMES and sum(1 for _ in _NAME_END.finditer(raw)) > _MAX_NAMES:
        raise PayloadTooLarge(f"the body has more than {_MAX_NAMES} names", field="body")
    return parse_json(model, raw, max_bytes=max_bytes)
