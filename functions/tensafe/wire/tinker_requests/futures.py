"""Asking for results and giving up on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tensafe.wire.ids import RequestId, SamplerId
from tensafe.wire.json_body import RequestModel
from tensafe.wire.tinker_requests.fields import Count, Id

_MAX_ACKNOWLEDGED = 100_000


class RetrieveFutureBody(RequestModel):
    """POST retrieve_future. `allow_metadata_only`: a large result may be announced before it is sent."""

    request_id: Id
    allow_metadata_only: bool = False

    def to_request_id(self) -> RequestId:
        """The operation asked for; InvalidRequest for an id that we cannot have given out."""
        return RequestId.parse(self.request_id)


class SamplingSessionTarget(RequestModel):
    """Whose completions to report. `cloned_sampler_id` is the client's block of sequence numbers."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: Id
    cloned_sampler_id: Count = 0


class RetrieveFuturesBody(RequestModel):
    """POST retrieve_futures: completions after `prev_cursor`. `timeout` in seconds, None: we choose."""

    target: SamplingSessionTarget
    prev_cursor: Count = 0
    timeout: float | None = Field(default=None, ge=0)
    retrieved_request_ids: list[Id] = Field(
        default_factory=list, max_length=_MAX_ACKNOWLEDGED, fail_fast=True
    )

    def to_sampler_id(self) -> SamplerId:
        """The sampling session asked about."""
        return SamplerId.parse(self.target.sampling_session_id, "target.sampling_session_id")

    def to_retrieved(self) -> tuple[RequestId, ...]:
        """Results that the client has and that may be deleted."""
        return tuple(
            RequestId.parse(text, f"retrieved_request_ids[{i}]")
            for i, text in enumerate(self.retrieved_request_ids)
        )


class CancelFutureBody(RequestModel):
    """POST cancel_future."""

    request_id: Id

    def to_request_id(self) -> RequestId:
        """The operation to cancel."""
        return RequestId.parse(self.request_id)
