"""Answers that may be large: sent as they are, or left with the blob store where the platform caps answers.

Lambda returns 6 MB at most. A larger answer is put into the blob store in clear (encrypted at rest by the
store alone), and the client is sent there (303) with a URL that ends in minutes; it is deleted soon after.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import RedirectResponse, Response

from tensafe.api.context import Context
from tensafe.operations import layout
from tensafe.operations.streams import now_ms
from tensafe.storage.ports import Put

URL_LIFETIME_S: Final = 300
KEPT_S: Final = 900
"""A download that has begun may go on for so long."""
ELSEWHERE: Final[dict[int | str, dict[str, Any]]] = {
    303: {"description": "The answer is too large for the platform: it is at Location for some minutes."}
}
_NO_STORE: Final = {"Cache-Control": "no-store"}


async def send(
    context: Context, data: bytes, media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer with `headers`, or a redirect to it if it passes `EdgeLimits.answer_bytes`."""
    cap, headers = context.limits.answer_bytes, {**_NO_STORE, **(headers or {})}
    if cap is None or len(data) <= cap:
        return Response(data, media_type=media_type, headers=headers)
    url = await context.call(_leave, context, data, media_type)
    return RedirectResponse(url, 303, headers=headers)


def _leave(context: Context, data: bytes, media_type: str) -> str:
    """The note first, so that nothing stays which nobody knows of."""
    ports = context.services.ports
    key = f"answers/{os.urandom(2).hex()}/{os.urandom(16).hex()}"
    ports.items.write([Put(layout.due_blob(now_ms() + KEPT_S * 1000, key), {"blob": key}, 0)])
    ports.blobs.put(key, data)
    return ports.blobs.presign_get(key, expires_s=URL_LIFETIME_S, media_type=media_type)
