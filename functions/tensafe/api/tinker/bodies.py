"""Answering with this face's response models."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import Query
from starlette.responses import Response

from tensafe.wire.tinker_responses.base import ResponseModel, to_json


class JsonAnswer(Response):
    """A body that is JSON already; routes name it so that their document says what they send."""

    media_type = "application/json"


Access = Annotated[Literal["owned", "accessible"], Query()]
"""The query parameter `access_scope`. Tenants share nothing here, so what is accessible is what is owned."""
NO_CONTENT: Final[dict[int | str, dict[str, Any]]] = {204: {"description": "Done"}}


def answer(model: ResponseModel, status: int = 200) -> Response:
    """A response model as HTTP."""
    return JsonAnswer(to_json(model), status)
