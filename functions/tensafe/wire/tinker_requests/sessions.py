"""Sessions, client configuration, telemetry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from tensafe.wire.json_body import RequestModel
from tensafe.wire.tinker_requests.fields import Id, Name, Text, UserMetadata


class ClientConfigBody(RequestModel):
    """POST client/config and client/dynamic_config."""

    sdk_version: Name


class CreateSessionBody(RequestModel):
    """POST create_session. Everything about a client process hangs off one session."""

    tags: list[Text] = Field(max_length=64, fail_fast=True)
    user_metadata: UserMetadata | None = None
    sdk_version: Name
    project_id: Id | None = None
    display_name: Text | None = None
    type: Literal["create_session"] = "create_session"


class SessionHeartbeatBody(RequestModel):
    """POST session_heartbeat, every 10 s."""

    session_id: Id
    type: Literal["session_heartbeat"] = "session_heartbeat"


class FinishReason(RequestModel):
    """Why a client closed its session."""

    type: Literal["success", "errored", "interrupted"]


class FinishSessionBody(RequestModel):
    """POST sessions/{id}/finish. The first reason stands."""

    reason: FinishReason
    detail: Annotated[str, Field(max_length=65_536)] | None = None


class AssignProjectBody(RequestModel):
    """PUT sessions/{id}/project."""

    project_id: Id


class TelemetryBody(RequestModel):
    """POST telemetry. Events can hold tracebacks and API keys: count them, keep nothing."""

    model_config = ConfigDict(extra="ignore")

    events: list[JsonValue] = Field(repr=False)
    sdk_version: Name
    session_id: Id
