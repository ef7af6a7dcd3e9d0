"""Payloads of operations: what the edge writes into the log and a GPU task reads back."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.sampling import SampleRequest
from tensafe.contracts.training import LoraSpec, OptimizerConfig, Strict

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"


class CheckpointRef(Strict):
    """A saved artifact of one of the tenant's runs."""

    run_id: str
    kind: str
    name: str


class CreatePayload(Strict):
    """Make a fresh adapter."""

    lora: LoraSpec
    optimizer: OptimizerConfig


class LoadPayload(Strict):
    """Begin a run from a checkpoint; with its optimizer state, or with weights alone."""

    source: CheckpointRef
    with_optimizer: bool
    lora: LoraSpec
    optimizer: OptimizerConfig


class SavePayload(Strict):
    """Save weights and optimizer state, sampler weights, or a PEFT export (by the operation's kind)."""

    name: str
    overwrite: bool = False
    ttl_s: int | None = Field(default=None, ge=1)
    user_metadata: dict[str, str] = Field(default_factory=dict)
    sampling_session_id: str | None = None
    """With sampler weights: they belong to this sampling session and are not listed."""
    create_session: bool = True
    """Whether the session begins with these weights; false if the edge has created it already."""
    age_recipients: tuple[str, ...] = ()
    """With a PEFT export: encrypt every file to these age recipients."""


class SamplePayload(Strict):
    """Draw tokens. `prompt_logprobs_last_n` keeps only the last n prompt logprobs in the answer."""

    request: SampleRequest
    prompt_logprobs_last_n: int | None = Field(default=None, ge=1)
    answer: Literal["protobuf", "json"] = "protobuf"
    execution_policy: ExecutionPolicy | None = None
    """Strengthens the adapter's own policy; None takes that one."""
