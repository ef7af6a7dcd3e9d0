"""The official SDK, unmodified, whose requests reach an application without a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import tinker
from fastapi import FastAPI
from tinker.lib import internal_client_holder


class Edge:
    """The application as the SDK's transport. `asked` has the path of every request, `answered` its status.

    The next answer of each path in `lost` never arrives.
    """

    def __init__(self, app: FastAPI) -> None:
        self.asked: list[str] = []
        self.answered: list[int] = []
        self.on_answer: Callable[[int], object] = lambda _: None
        self.lost: list[str] = []
        self._app = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1/")
        self.asked.append(path)
        await request.aread()
        answer = await self._app.handle_async_request(request)
        content = await answer.aread()
        self.answered.append(answer.status_code)
        self.on_answer(answer.status_code)
        if path in self.lost:
            self.lost.remove(path)
            raise httpx.ReadError("the connection was reset", request=request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)


@contextmanager
def service_client(edge: Edge, key: str) -> Iterator[tinker.ServiceClient]:
    """The SDK's entry point with this key; telemetry is off."""
    real = internal_client_holder.AsyncTinker

    def in_memory(**kwargs: Any) -> Any:
        client = httpx.AsyncClient(transport=httpx.MockTransport(edge.handle), base_url=kwargs["base_url"])
        return real(http_client=client, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(internal_client_holder, "AsyncTinker", in_memory)
        patch.setenv("TINKER_TELEMETRY", "0")
        client = tinker.ServiceClient(base_url="http://edge", api_key=key)
        yield client
        client.close("success").result(timeout=20)
