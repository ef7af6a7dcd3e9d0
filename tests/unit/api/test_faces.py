"""The table of faces and the routers say the same; a request finds the route that a router would choose."""

from __future__ import annotations

import importlib
import pkgutil
import re
from itertools import product

import pytest
from fastapi import APIRouter
from starlette.routing import BaseRoute, Match, NoMatchFound, Route
from starlette.testclient import TestClient

import tensafe.api
from tensafe.api.app import create_app
from tensafe.api.faces import MODULES, Faces, beginning
from tensafe.services import Services

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NOWHERE = (
    "/",
    "",
    "/v1",
    "/v1/",
    "/api",
    "/api/v1",
    "/api/v1/",
    "//v1/models",
    "/api/v2/asample",
    "/v1/modelsx",
)


def routers() -> dict[str, APIRouter]:
    """Every router below tensafe.api by its module, whatever the table says."""
    found = {}
    for one in pkgutil.walk_packages(tensafe.api.__path__, "tensafe.api."):
        router = getattr(importlib.import_module(one.name), "router", None)
        if isinstance(router, APIRouter):
            found[one.name.removeprefix("tensafe.api.")] = router
    return found


def test_the_table_and_the_routers_say_the_same() -> None:
    stated = {(start, module) for start, modules in MODULES.items() for module in modules}
    there = {(beginning(route.path), name) for name, router in routers().items() for route in _routes(router)}
    assert stated == there


def _routes(router: APIRouter) -> list[Route]:
    assert all(isinstance(route, Route) for route in router.routes)
    return [route for route in router.routes if isinstance(route, Route)]


def test_no_pattern_leaves_its_beginning_open() -> None:
    assert not [start for start in MODULES if "{" in start]


def paths() -> list[str]:
    """One that each pattern matches, some that go on behind it, and some that nothing serves."""
    served = [re.sub(r"\{[^}]+\}", "7", route.path) for route in Faces().load()]
    return [*served, *(path + more for path, more in product(served, ("/", "/more"))), *NOWHERE]


def chosen(routes: list[BaseRoute], scope: dict[str, object]) -> tuple[Match, object, object]:
    """As starlette's router chooses."""
    best: tuple[Match, object, object] = (Match.NONE, None, None)
    for route in routes:
        match, child = route.matches(scope)
        if match is Match.FULL:
            return match, child["route"], child["path_params"]
        if match is Match.PARTIAL and best[0] is Match.NONE:
            best = match, child["route"], child["path_params"]
    return best


def test_a_request_finds_the_route_that_a_router_of_them_all_would_choose() -> None:
    faces = Faces()
    every: list[BaseRoute] = list(faces.load())
    asked = list(product(sorted(set(paths())), METHODS))
    assert len(asked) > 1000
    for path, method in asked:
        scope = {"type": "http", "path": path, "method": method, "root_path": ""}
        assert chosen([faces], dict(scope)) == chosen(every, dict(scope)), (method, path)


def test_nothing_but_http_is_matched() -> None:
    assert Faces().matches({"type": "websocket", "path": "/healthz"}) == (Match.NONE, {})


def test_no_route_is_found_by_name() -> None:
    with pytest.raises(NoMatchFound):
        Faces().url_path_for("healthz")


@pytest.mark.parametrize("at_once", [True, False])
def test_the_document_holds_every_route_whenever_their_modules_are_imported(
    services: Services, at_once: bool
) -> None:
    with TestClient(create_app(services, at_once=at_once)) as http:
        paths = http.get("/openapi.json").json()["paths"]
    shown = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    routes = {
        (route.path.replace(":path}", "}"), method)
        for router in routers().values()
        for route in _routes(router)
        for method in route.methods or ()
    }
    assert shown == routes
