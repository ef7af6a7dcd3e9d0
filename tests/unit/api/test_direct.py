"""Direct routes run an endpoint's dependencies, and leave every other kind of endpoint to FastAPI."""

from __future__ import annotations

import asyncio
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tensafe.api.direct import DirectRoute
from tensafe.api.faces import Faces


async def _caller(request: Request) -> str:
    name = request.headers.get("x-api-key")
    if name is None:
        raise HTTPException(401)
    return name


async def _with_query(request: Request, limit: int = 1) -> int:
    return limit


router = APIRouter(route_class=DirectRoute)


@router.post("/direct")
async def direct(request: Request, caller: Annotated[str, Depends(_caller)]) -> Response:
    return JSONResponse({"caller": caller, "body": (await request.body()).decode()})


@router.get("/path/{name}")
async def with_path(name: int, caller: Annotated[str, Depends(_caller)]) -> Response:
    return JSONResponse({"caller": caller, "name": name})


@router.get("/query")
async def with_query(limit: Annotated[int, Depends(_with_query)]) -> Response:
    return JSONResponse({"limit": limit})


@router.get("/model")
async def with_model(caller: Annotated[str, Depends(_caller)]) -> dict[str, str]:
    return {"caller": caller}


def send(method: str, path: str, **arguments: object) -> httpx.Response:
    app = FastAPI()
    app.include_router(router)

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            return await client.request(method, path, **arguments)  # type: ignore[arg-type]

    return asyncio.run(go())


KEY = {"x-api-key": "ada"}


def test_dependencies_and_request_arrive() -> None:
    answer = send("POST", "/direct", headers=KEY, content=b"hello")
    assert answer.json() == {"caller": "ada", "body": "hello"}


@pytest.mark.parametrize(("method", "path"), [("POST", "/direct"), ("GET", "/path/1"), ("GET", "/model")])
def test_a_dependency_that_refuses_refuses_the_request(method: str, path: str) -> None:
    assert send(method, path).status_code == 401


def test_other_endpoints_keep_their_parameters() -> None:
    assert send("GET", "/path/7", headers=KEY).json() == {"caller": "ada", "name": 7}
    assert send("GET", "/path/seven", headers=KEY).status_code == 422
    assert send("GET", "/query", params={"limit": 5}).json() == {"limit": 5}
    assert send("GET", "/query", params={"limit": "many"}).status_code == 422
    assert send("GET", "/model", headers=KEY).json() == {"caller": "ada"}


def _is_direct(route: DirectRoute) -> bool:
    return "DirectRoute" in route.get_route_handler().__qualname__


def test_the_busy_routes_are_direct() -> None:
    routes = {route.path: route for route in Faces().load() if isinstance(route, DirectRoute)}
    for name in (
        "retrieve_future",
        "retrieve_futures",
        "forward_backward",
        "optim_step",
        "asample",
        "get_info",
    ):
        assert _is_direct(routes[f"/api/v1/{name}"]), name
    assert not _is_direct(routes["/api/v1/samplers/{sampler_id}"])
