"""The shape of an error as the OpenAPI document tells it; `api/errors.py` makes them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ErrorBody(BaseModel):
    """What went wrong: a stable `code`, a message that says what would be right, the field at fault."""

    model_config = ConfigDict(extra="forbid")

    code: str
    message: str
    field: str | None
    request_id: str


class ErrorAnswer(BaseModel):
    """The one shape of every error; `detail` repeats the message."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorBody
    detail: str
