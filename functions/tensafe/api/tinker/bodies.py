"""Answering with this face's response models."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from tensafe.wire.tinker_responses.base import ResponseModel, to_json


class JsonAnswer(Response):
    """A body that is JSON already; routes name it so that their document says what they send."""

    media_type = "application/json"


NO_CONTENT: Final[dict[int | str, dict[str, Any]]] = {204: {"description": "Done"}}


def answer(model: ResponseModel, status: int = 200) -> Response:
    """A response model as HTTP."""
    return JsonAnswer(to_json(model), status)
