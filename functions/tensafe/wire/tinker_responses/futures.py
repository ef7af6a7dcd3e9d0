"""Submissions, results that travel as JSON, and the ways to say "not yet" and "it failed"."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tensafe.contracts.errors import TensafeError
from tensafe.wire.ids import RequestId, SamplerId, sample_sequence_ids
from tensafe.wire.tinker_responses.base import ResponseModel

QueueState = Literal["active", "paused_capacity", "paused_rate_limit"]


class FutureResponse(ResponseModel):
    """A submission was accepted. Sampling must name one sequence per continuation, or the SDK fails."""

    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None

    @classmethod
    def of(cls, request: RequestId, *, num_samples: int | None = None) -> FutureResponse:
        """For an operation of a run, or of a sampling session with its number of continuations."""
        if isinstance(request.owner, SamplerId):
            return cls(
                request_id=str(request), sample_sequence_ids=sample_sequence_ids(request, num_samples or 1)
            )
        return cls(request_id=str(request), model_id=str(request.owner))


class TryAgainResponse(ResponseModel):
    """Not yet: send with 408, after a long poll. With 200 the SDK asks again at once and logs it."""

    type: Literal["try_again"] = "try_again"
    request_id: str
    queue_state: QueueState = "active"
    queue_state_reason: str | None = None


class RequestFailedResponse(ResponseModel):
    """The operation failed: send with 200. The SDK raises RequestFailedError."""

    error: str = Field(min_length=1)
    category: Literal["user", "server", "unknown"]

    @classmethod
    def of(cls, error: TensafeError) -> RequestFailedResponse:
        """From a deliberate error; its code leads the message."""
        return cls(error=f"[{error.code}] {error.message}", category=error.category)


class CompleteMetadataResponse(ResponseModel):
    """Done, but large: the SDK reserves memory and asks again with allow_metadata_only false."""

    status: Literal["complete_metadata"] = "complete_metadata"
    response_payload_size: int = Field(ge=1)


class FutureFinished(ResponseModel):
    """A completion with a result to fetch."""

    state: Literal["finished"] = "finished"
    request_id: str
    response_payload_uncompressed_size: int | None = None


class FutureFailed(ResponseModel):
    """A completion whose error is to be fetched."""

    state: Literal["failed"] = "failed"
    request_id: str


class RetrieveFuturesResponse(ResponseModel):
    """Completions since the cursor that was sent, and the next one."""

    completions: list[FutureFinished | FutureFailed]
    cursor: int = Field(ge=0)


class CreateModelResponse(ResponseModel):
    """Result of create_model."""

    type: Literal["create_model"] = "create_model"
    model_id: str


class OptimStepResponse(ResponseModel):
    """Result of optim_step; pass metrics through `finite_metrics`."""

    metrics: dict[str, float] | None = None


class SaveWeightsResponse(ResponseModel):
    """Result of save_weights."""

    type: Literal["save_weights"] = "save_weights"
    path: str


class SaveWeightsForSamplerResponse(ResponseModel):
    """Result of save_weights_for_sampler: a path, or the sampling session that was asked for."""

    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"
    path: str | None = None
    sampling_session_id: str | None = None


class SaveWeightsExternalResponse(ResponseModel):
    """Result of save_weights_external."""

    type: Literal["save_weights_external"] = "save_weights_external"
    path: str
    size_bytes: int | None = None


class LoadWeightsResponse(ResponseModel):
    """Result of load_weights."""

    type: Literal["load_weights"] = "load_weights"
    path: str
    model_id: str
