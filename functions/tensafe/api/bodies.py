"""Reading request bodies: capped as they arrive, parsed once the caller is known, never before."""

from __future__ import annotations

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
_MAX_COLONS: Final = 50_000
_Body = TypeVar("_Body", bound=BaseModel)


async def read(
    model: type[_Body], request: Request, context: Context, *, max_bytes: int = JSON_MAX_BYTES
) -> _Body:
    """The JSON body as `model`. Raises InvalidRequest with the field, PayloadTooLarge."""
    return parse(model, await context.body(request, max_bytes=max_bytes), max_bytes=max_bytes)


def parse(model: type[_Body], raw: bytes, *, max_bytes: int = JSON_MAX_BYTES) -> _Body:
    """JSON as `model`.

    A wrong value in an object costs pydantic a thousand times its own space to report, and it reports
    all of them: no request of this service has so many names.
    """
    if raw.count(b":") > _MAX_COLONS:
        raise PayloadTooLarge(f"the body has more than {_MAX_COLONS} names and values", field="body")
    return parse_json(model, raw, max_bytes=max_bytes)
