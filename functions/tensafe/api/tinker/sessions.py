"""Configuration, sessions, capabilities, telemetry."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from tensafe.api.bodies import read
from tensafe.api.context import Caller, Edge, WorkCaller
from tensafe.api.errors import shaped
from tensafe.api.metadata import METADATA_MAX_BYTES, check_metadata
from tensafe.api.openapi import ERRORS, documented
from tensafe.api.tinker.bodies import Access, answer
from tensafe.api.tinker.prefix import PREFIX, TAGS
from tensafe.contracts.errors import InvalidRequest, NotFound
from tensafe.operations.sessions import Session
from tensafe.services import Services
from tensafe.storage.ports import JsonValue
from tensafe.wire.tinker_requests import sessions
from tensafe.wire.tinker_responses import sessions as responses

router = APIRouter(prefix=PREFIX, tags=TAGS, responses=ERRORS)


@router.post("/client/config", openapi_extra=documented(sessions.ClientConfigBody))
async def client_config(request: Request, principal: Caller, context: Edge) -> Response:
    """Flags for this client; the first call that every SDK client makes."""
    await read(sessions.ClientConfigBody, request, context)
    return answer(responses.ClientConfig())


@router.post("/client/dynamic_config")
async def dynamic_config(request: Request, principal: Caller, context: Edge) -> Response:
    """Flags that the SDK asks for again every five minutes."""
    await context.body(request)
    return answer(responses.ClientDynamicConfig())


@router.get("/healthz")
async def healthz() -> Response:
    """The edge answers."""
    return answer(responses.HealthResponse())


@router.get("/get_server_capabilities")
async def capabilities(principal: Caller, context: Edge) -> Response:
    """The base models of this deployment."""
    supported = [
        responses.SupportedModel(
            model_name=info.name,
            max_context_length=info.max_context_tokens,
            trainable=True,
            sampleable=True,
        )
        for info in context.services.models.values()
    ]
    return answer(responses.ServerCapabilitiesResponse(supported_models=supported))


@router.post("/create_session", openapi_extra=documented(sessions.CreateSessionBody))
async def create_session(request: Request, principal: WorkCaller, context: Edge) -> Response:
    """A session for one client process."""
    body = await read(sessions.CreateSessionBody, request, context)
    check_metadata(dict(body.user_metadata or {}))
    details = body.model_dump(mode="json", exclude={"type"})
    if len(json.dumps(details)) > METADATA_MAX_BYTES * 2:
        raise InvalidRequest("the tags take too much space; give fewer or shorter ones", field="tags")
    session = await context.call(_create_session, context.services, principal.tenant, details)
    return answer(responses.CreateSessionResponse(session_id=session.session_id))


def _create_session(services: Services, tenant: str, details: dict[str, JsonValue]) -> Session:
    services.quotas.admit_session(tenant)
    return services.sessions.create(tenant, details)


@router.post("/session_heartbeat", openapi_extra=documented(sessions.SessionHeartbeatBody))
async def heartbeat(request: Request, principal: WorkCaller, context: Edge) -> Response:
    """Looking the session up notes that its client is there; 410 stops the heartbeats."""
    body = await read(sessions.SessionHeartbeatBody, request, context)
    session = context.session(principal, body.session_id)
    if session.body.get("finished_ms"):
        return shaped(request, 410, "gone", "this session has been finished")
    return answer(responses.SessionHeartbeatResponse())


@router.post(
    "/sessions/{session_id}/finish",
    status_code=204,
    openapi_extra=documented(sessions.FinishSessionBody),
)
async def finish(session_id: str, request: Request, principal: WorkCaller, context: Edge) -> Response:
    """The client is done; its runs and checkpoints stay."""
    context.session(principal, session_id)
    await read(sessions.FinishSessionBody, request, context)
    await context.call(context.services.sessions.finish, session_id, principal.tenant)
    return Response(status_code=204)


@router.get("/sessions")
async def list_sessions(
    principal: Caller,
    context: Edge,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    offset: Annotated[int, Query(ge=0, le=100_000)] = 0,
    access_scope: Access = "owned",
) -> Response:
    """The tenant's sessions, newest first."""
    found = await context.call(context.services.sessions.list, principal.tenant, limit=limit + offset)
    ids = [session.session_id for session in found][offset : offset + limit]
    return answer(responses.ListSessionsResponse(sessions=ids))


@router.get("/sessions/{session_id}")
async def get_session(
    session_id: str, principal: Caller, context: Edge, access_scope: Access = "owned"
) -> Response:
    """What the session created."""
    session = context.session(principal, session_id)
    members = await context.call(context.services.streams.of_session, session_id)
    metadata = session.body.get("user_metadata")
    return answer(
        responses.GetSessionResponse(
            training_run_ids=[member for member in members if ":train:" in member],
            sampler_ids=[member for member in members if ":sample:" in member],
            display_name=str(name) if (name := session.body.get("display_name")) else None,
            user_metadata=metadata if isinstance(metadata, dict) else None,  # type: ignore[arg-type]
        )
    )


@router.post("/telemetry")
async def telemetry(request: Request, principal: Caller, context: Edge) -> Response:
    """Taken and dropped: the SDK's events can hold tracebacks and the API key itself."""
    await context.body(request)
    return answer(responses.TelemetryResponse())


@router.get("/auth/apikey/me")
async def own_key(principal: Caller) -> Response:
    """What this key is, as `tinker auth login` reads it. There are tenants here, not users: no e-mail."""
    return JSONResponse(
        {
            "key_id": int(principal.key_id, 16),
            "name": principal.key_id,
            "note": f"scopes: {', '.join(sorted(principal.scopes))}",
            "details": {"org_details": {"name": principal.tenant}, "user_details": {"email": ""}},
        }
    )


@router.post("/auth/token")
async def auth_token(principal: Caller) -> Response:
    """Refused: keys are sent as they are, and the client configuration says so."""
    raise NotFound("this service does not exchange keys for tokens")
