"""Routes that hand an endpoint its request, caller and context without FastAPI's general solver.

The solver prepares for parameters, bodies and clean-ups of every kind on every request. Endpoints that
read their own body need none of it.
"""

from __future__ import annotations

import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.responses import Response

Resolver = Callable[[Request], Awaitable[Any]]


class DirectRoute(APIRoute):
    """For `APIRouter(route_class=...)`. An endpoint that takes anything else keeps FastAPI's own handler."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        resolvers = _resolvers(self.dependant)
        if resolvers is None or not _returns_response(self.endpoint):
            return super().get_route_handler()
        endpoint, request_name = self.endpoint, self.dependant.request_param_name

        async def handle(request: Request) -> Response:
            values = {name: await resolve(request) for name, resolve in resolvers.items()}
            if request_name is not None:
                values[request_name] = request
            response: Response = await endpoint(**values)
            return response

        return handle


def _resolvers(dependant: Dependant) -> dict[str, Resolver] | None:
    """By parameter, the coroutine function that gives its value from the request; None if one needs more."""
    resolvers: dict[str, Resolver] = {}
    for inner in dependant.dependencies:
        simple = inner.name is not None and inner.request_param_name == "request" and not inner.dependencies
        if not simple or _takes_more(inner) or not inner.is_coroutine_callable:
            return None
        resolvers[typing.cast(str, inner.name)] = typing.cast(Resolver, inner.call)
    return None if _takes_more(dependant) or not dependant.is_coroutine_callable else resolvers


def _takes_more(dependant: Dependant) -> bool:
    """Whether the function has parameters beside the request and its dependencies."""
    lists = ("path_params", "query_params", "header_params", "cookie_params", "body_params")
    names = ("http_connection_param_name", "response_param_name", "background_tasks_param_name")
    special = (*names, "websocket_param_name", "security_scopes_param_name")
    return any(getattr(dependant, name) for name in (*lists, *special))


def _returns_response(endpoint: Callable[..., Any]) -> bool:
    returned = typing.get_type_hints(endpoint).get("return")
    return isinstance(returned, type) and issubclass(returned, Response)
