"""What the OpenAPI document says beyond what FastAPI reads off the routes: bodies, errors, credentials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.routing import BaseRoute

PUBLIC_PATHS: Final = frozenset({"/healthz", "/readyz", "/version", "/api/v1/healthz"})
"""What answers without a credential."""
SIGNED_PATHS: Final = frozenset({"/api/v1/external_files/{artifact_id}/{file}"})
"""Where the credential is the signature in the URL."""
_STATUSES: Final = (401, 403, 404, 405, 408, 409, 410, 413, 422, 429, 503)

# By reference: a model here would be built anew for every route and status, a quarter of a cold start.
_SCHEMAS: Final = "#/components/schemas/"
_ERROR: Final = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}ErrorAnswer"}}}
ERRORS: Final[dict[int | str, dict[str, Any]]] = {status: {"content": _ERROR} for status in _STATUSES}
"""For `responses=` of every router whose routes need a credential."""
_bodies: Final[list[tuple[dict[str, Any], type[BaseModel]]]] = []


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its JSON body itself; filled when the document is asked for."""
    extra: dict[str, Any] = {}
    _bodies.append((extra, model))
    return extra


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
    definitions = schema.pop("$defs", {})
    inlined = _inline(schema, definitions)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined}}}}


def install(app: FastAPI, routes: Callable[[], Sequence[BaseRoute]]) -> None:
    """Let the application's document show all `routes`, name the two ways to send a key, and what needs
    none."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            shown = routes()
            for extra, model in _bodies:
                extra.update(_body_of(model))
            built = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=shown
            )
            app.openapi_schema = _with_credentials(built)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _with_credentials(document: dict[str, Any]) -> dict[str, Any]:
    from tensafe.api.error_models import ErrorAnswer  # noqa: PLC0415 - built for the document alone

    components = document["components"]
    errors = ErrorAnswer.model_json_schema(ref_template=_SCHEMAS + "{model}")
    components.setdefault("schemas", {}).update(errors.pop("$defs"))
    components["schemas"][ErrorAnswer.__name__] = errors
    components["securitySchemes"] = {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "Bearer": {"type": "http", "scheme": "bearer"},
    }
    document["security"] = [{"ApiKey": []}, {"Bearer": []}]
    for path in (PUBLIC_PATHS | SIGNED_PATHS) & document["paths"].keys():
        for operation in document["paths"][path].values():
            operation["security"] = []
    return document


def _inline(node: Any, definitions: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """The schema with its references replaced; no request model is recursive but for free JSON."""
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            name = reference.rsplit("/", 1)[1]
            return _inline(definitions[name], definitions) if name in definitions else {}
        # Discriminators refer to definitions, which are gone; the branches say as much.
        return {key: _inline(value, definitions) for key, value in node.items() if key != "discriminator"}
    if isinstance(node, list):
        return [_inline(value, definitions) for value in node]
    return node
