"""Which module serves which paths. Each is imported at once, or with the first request for one of its paths.

A function of Lambda waits for its imports before its first answer, and most of its instances serve few
paths: building the models and routes of all faces takes longer than everything else of ours in a cold
start. A process that lives for days loads them at once, so that what is broken shows when it starts.
Either way a request is handed to the same route; only when its module is imported differs.

A module is found by the first segments of a path, which no pattern of ours leaves open: what is not in the
table can match no route.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, Match, NoMatchFound, Route
from starlette.types import Receive, Scope, Send

_ROOM: Final = "tensafe.api"


def _table(prefix: str, served: dict[tuple[str, ...], str]) -> dict[str, tuple[str, ...]]:
    return {prefix + segment: modules for modules, segments in served.items() for segment in segments.split()}


MODULES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    _table(
        "/api/v1/",
        {
            ("tinker.futures",): "retrieve_future retrieve_futures cancel_future",
            ("tinker.training",): "create_model get_info forward_backward optim_step create_custom_loss",
            ("tinker.sampling",): "create_sampling_session join_sampling_session samplers asample",
            ("tinker.weights",): "save_weights save_weights_for_sampler save_weights_external load_weights",
            ("tinker.sessions",): "client healthz get_server_capabilities create_session session_heartbeat "
            "sessions telemetry auth",
            ("tinker.checkpoints",): "training_runs checkpoints weights_info copy_weights external_files",
        },
    )
    | _table(
        "/v1/",
        {
            ("native.training_clients", "native.deals"): "training_clients",
            ("native.sampling",): "sample",
            ("native.futures",): "futures",
            ("native.artifacts",): "artifacts",
            ("native.privacy",): "privacy",
            ("openai.models",): "models",
            ("openai.completions",): "completions chat",
        },
    )
    | _table("/", {("native.health",): "healthz readyz version"})
)
"""By the beginning of a path, the modules below `tensafe.api` whose `router` has its routes."""


def beginning(path: str) -> str:
    """The first segments of a path, which name its module: two below /v1, three below /api/v1."""
    parts = path.split("/", 4)
    depth = 4 if path.startswith("/api/") else 3 if path.startswith("/v1/") else 2
    return "/".join(parts[:depth])


class Faces(BaseRoute):
    """All routes of the service as one route. For the event loop's thread alone."""

    def __init__(self) -> None:
        self._loaded: dict[str, list[BaseRoute]] = {}

    def load(self) -> list[Route]:
        """Import every module; the routes of all of them."""
        begun = dict.fromkeys(MODULES.values())
        return [route for names in begun for route in self._routes(names) if isinstance(route, Route)]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As a router of all routes would choose: the first that takes the method as well, or else the first
        that has the path."""
        chosen: tuple[Match, Scope] = (Match.NONE, {})
        if scope["type"] != "http":
            return chosen
        for route in self._routes(MODULES.get(beginning(scope["path"]), ())):
            match, child_scope = route.matches(scope)
            if match is Match.FULL or (match is Match.PARTIAL and chosen[0] is Match.NONE):
                chosen = match, {**child_scope, "route": route}
            if match is Match.FULL:
                break
        return chosen

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand over to the route that was chosen."""
        route: BaseRoute = scope["route"]
        await route.handle(scope, receive, send)

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:  # noqa: ANN401 - as it is overridden
        """No route is looked up by its name."""
        raise NoMatchFound(name, path_params)

    def _routes(self, modules: tuple[str, ...]) -> Iterator[BaseRoute]:
        for name in modules:
            if name not in self._loaded:
                self._loaded[name] = importlib.import_module(f"{_ROOM}.{name}").router.routes
            yield from self._loaded[name]
