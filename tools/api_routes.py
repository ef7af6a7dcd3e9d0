"""Writes the routes of the application into template.yaml, between the two lines that mark them.

    .venv/bin/python tools/api_routes.py           # rewrite the block
    .venv/bin/python tools/api_routes.py --check   # exit 1 if it is out of date

API Gateway gets one route for each method and path, so that what is not a route of the application never
reaches a function. tests/unit/infra compares the two sets.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.routing import BaseRoute, Route

from tensafe.api.app import create_app
from tensafe.api.faces import Faces
from tensafe.api.openapi import PUBLIC_PATHS, SIGNED_PATHS
from tensafe.local.composition import initialise, local_services
from tensafe.local.settings import LocalSettings

TEMPLATE = Path(__file__).resolve().parent.parent / "template.yaml"
BEGIN, END = "  # routes: begin (tools/api_routes.py)\n", "  # routes: end\n"


def application_routes() -> dict[str, bool]:
    """Every `METHOD /path` of the application, and whether it needs a credential."""
    with TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        initialise(data_dir)
        with local_services(LocalSettings(data_dir=data_dir)) as services:
            app = create_app(services)
            open_paths = PUBLIC_PATHS | SIGNED_PATHS | {app.openapi_url}
            routes = [*app.routes, *Faces().load()]
            found = {f"{method} {path}": path not in open_paths for method, path in _paths(routes)}
    return dict(sorted(found.items(), key=lambda item: item[0].split(" ")[::-1]))


def _paths(routes: Sequence[BaseRoute]) -> set[tuple[str, str]]:
    return {
        # What takes the rest of the path is {name:path} there, and {name+} for API Gateway.
        (method, route.path.replace(":path}", "+}"))
        for route in routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }


def block(routes: dict[str, bool]) -> str:
    """The resources, three lines each."""
    return "".join(_resource(key, needs_credential) for key, needs_credential in routes.items())


def _resource(route_key: str, needs_credential: bool) -> str:
    auth = "CUSTOM, AuthorizerId: !Ref HttpAuthorizer" if needs_credential else "NONE"
    return (
        f"  {resource_name(route_key)}:\n"
        "    Type: AWS::ApiGatewayV2::Route\n"
        f'    Properties: {{ApiId: !Ref HttpApi, RouteKey: "{route_key}", '
        'Target: !Sub "integrations/${ApiIntegration}", '
        f"AuthorizationType: {auth}}}\n"
    )


def resource_name(route_key: str) -> str:
    """`POST /v1/futures/{future_id}/cancel` -> `RoutePostV1FuturesFutureIdCancel`."""
    words = re.findall(r"[A-Za-z0-9]+", route_key)
    return "Route" + "".join(word[0].upper() + word[1:].lower() for word in words)


def rewritten(text: str) -> str:
    """The template with the present routes. Raises ValueError if the marks are not there once each."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("template.yaml has lost the lines that mark its routes")
    return before + begin + block(application_routes()) + end + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = TEMPLATE.read_text(encoding="utf-8")
    wanted = rewritten(text)
    if arguments.check:
        sys.exit(0 if text == wanted else "template.yaml: run tools/api_routes.py")
    TEMPLATE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
