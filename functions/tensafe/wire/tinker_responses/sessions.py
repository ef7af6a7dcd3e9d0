"""Configuration, sessions, capabilities."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, Field

from tensafe.wire.tinker_responses.base import ResponseModel


class ClientConfig(ResponseModel):
    """What the service asks of every SDK client, chosen for this service.

    Chunks stay under 3.5 MB so that they pass API Gateway in base64; one poller per sampling session
    replaces one poll per sample; pyqwest is off because it mishandles redirects to result URLs; pjwt
    is off because keys are sent as they are; copies of a sampling client ask for their number, so
    that sequence numbers stay below 10**15.
    """

    pjwt_auth_enabled: bool = False
    credential_default_source: Literal["api_key"] = "api_key"
    parallel_fwdbwd_chunks: bool = True
    proto_compress_fwdbwd: bool = True
    fwdbwd_max_chunk_len: int = Field(default=1024, ge=1)
    fwdbwd_max_chunk_bytes_count: int = Field(default=3_500_000, ge=1)
    use_pyqwest_transport: bool = False
    sample_use_retrieve_futures: bool = True
    sample_join_sampling_session: bool = True
    custom_loss_server_side: bool = False


class ClientDynamicConfig(ResponseModel):
    """What the SDK asks for again every `refresh_interval_sec`."""

    refresh_interval_sec: int = Field(default=300, ge=10)
    sample_cancel_enabled: bool = True


class CreateSessionResponse(ResponseModel):
    """The SDK logs the messages at their level."""

    type: Literal["create_session"] = "create_session"
    session_id: str
    info_message: str | None = None
    warning_message: str | None = None
    error_message: str | None = None


class SessionHeartbeatResponse(ResponseModel):
    """Still alive. A finished session is answered with 410 instead."""

    type: Literal["session_heartbeat"] = "session_heartbeat"


class CreateSamplingSessionResponse(ResponseModel):
    """The sampling session that was created, or that already was."""

    type: Literal["create_sampling_session"] = "create_sampling_session"
    sampling_session_id: str


class JoinSamplingSessionResponse(ResponseModel):
    """The number of a copy of a sampling client; the first client is 0."""

    type: Literal["join_sampling_session"] = "join_sampling_session"
    client_counter: int = Field(ge=1)


class SamplerResponse(ResponseModel):
    """What a sampling session samples from; no path means the base model itself."""

    sampler_id: str
    base_model: str
    model_path: str | None = None


class GetSessionResponse(ResponseModel):
    """What a session created."""

    training_run_ids: list[str]
    sampler_ids: list[str]
    user_metadata: dict[str, str] | None = None
    display_name: str | None = None


class ListSessionsResponse(ResponseModel):
    """Ids, newest first."""

    sessions: list[str]


class SupportedModel(ResponseModel):
    """A base model that the caller may use."""

    model_name: str
    max_context_length: int
    trainable: bool
    sampleable: bool


class ServerCapabilitiesResponse(ResponseModel):
    """What this deployment offers."""

    supported_models: list[SupportedModel]


class HealthResponse(ResponseModel):
    """Ready."""

    status: Literal["ok"] = "ok"


class TelemetryResponse(ResponseModel):
    """Taken, counted and dropped."""

    status: Literal["accepted"] = "accepted"


class AuditLogEntry(ResponseModel):
    """An event, in the SDK's words."""

    timestamp: AwareDatetime
    event: str
    event_details: dict[str, Any] = Field(default_factory=dict)


class AuditLogResponse(ResponseModel):
    """Events of a day."""

    entries: list[AuditLogEntry]
