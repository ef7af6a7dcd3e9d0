"""Runs and checkpoints as the REST resources show them."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from tensafe.contracts.training import OptimizerConfig
from tensafe.wire.tinker_responses.base import ResponseModel


class ModelData(ResponseModel):
    """The base model. `tokenizer_id` is what the client's AutoTokenizer loads; None: the model's name."""

    arch: str
    model_name: str
    tokenizer_id: str | None = None


class GetInfoResponse(ResponseModel):
    """Answer to get_info; asked once, when a training client is made."""

    type: Literal["get_info"] = "get_info"
    model_data: ModelData
    model_id: str
    optimizer_config: OptimizerConfig
    is_lora: Literal[True] = True
    lora_rank: int = Field(ge=1)
    model_name: str


class Checkpoint(ResponseModel):
    """A saved artifact."""

    checkpoint_id: str
    checkpoint_type: Literal["training", "sampler", "external"]
    time: AwareDatetime
    tinker_path: str
    size_bytes: int | None = None
    public: bool = False
    user_metadata: dict[str, str] | None = None
    expires_at: AwareDatetime | None = None


class Cursor(ResponseModel):
    """A page of a listing."""

    offset: int = Field(ge=0)
    limit: int = Field(ge=0)
    total_count: int = Field(ge=0)


class CheckpointsListResponse(ResponseModel):
    """Checkpoints of a run (no cursor) or of the caller."""

    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class TrainingRun(ResponseModel):
    """A run. `corrupted`: an earlier operation died and nothing more runs on it."""

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: Literal[True] = True
    corrupted: bool = False
    lora_rank: int | None = None
    last_request_time: AwareDatetime
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: dict[str, str] | None = None


class TrainingRunsResponse(ResponseModel):
    """A page of the caller's runs."""

    training_runs: list[TrainingRun]
    cursor: Cursor


class WeightsInfoResponse(ResponseModel):
    """What one must know to load a checkpoint."""

    base_model: str
    optimizer_config: OptimizerConfig
    is_lora: Literal[True] = True
    lora_rank: int
    train_unembed: bool
    train_mlp: bool
    train_attn: bool


class ExternalWeightsUrlsResponse(ResponseModel):
    """Where to fetch each file of an export, by its path in it."""

    urls: dict[str, str]
    expires: AwareDatetime
