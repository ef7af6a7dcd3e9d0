"""Requests and answers of the native face."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, RootModel

from tensafe.api.futures import Future
from tensafe.contracts.execution import ExecutionPolicy
from tensafe.contracts.sampling import MAX_SAMPLES, MAX_TOPK_LOGPROBS, SampleRequest, SamplingParams
from tensafe.contracts.training import MAX_RANK, AdamParams, AdamWConfig, OptimizerConfig, SgdParams, Strict
from tensafe.operations.checkpoints import Checkpoint
from tensafe.operations.records import StreamRecord
from tensafe.wire.tinker_requests.fields import UserMetadata


class LoraRequest(Strict):
    """Shape of a new adapter; without a seed, one is drawn and recorded."""

    rank: int = Field(default=16, ge=1, le=MAX_RANK)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True


class CreateTrainingClient(Strict):
    """A new run with a fresh adapter."""

    base_model: str = Field(min_length=1, max_length=200)
    lora: LoraRequest = LoraRequest()
    optimizer: OptimizerConfig = AdamWConfig()
    user_metadata: UserMetadata = Field(default_factory=dict)


class AdamStep(AdamParams):
    """A step of the optimizers adamw and tensafe_dp_adamw."""

    type: str | None = Field(default=None, max_length=64)
    """The run's optimizer, if the caller wants it checked."""

    def to_params(self) -> AdamParams:
        """What the log keeps."""
        return AdamParams(**self.model_dump(exclude={"type"}))


class OptimStep(RootModel[AdamStep | SgdParams]):
    """Hyper-parameters of one step, those of the run's optimizer."""


class SaveState(Strict):
    """Save weights and optimizer state under a name."""

    name: str = Field(min_length=1, max_length=128)
    overwrite: bool = False
    ttl_s: int | None = Field(default=None, ge=1, le=315_360_000)
    user_metadata: UserMetadata = Field(default_factory=dict)


class LoadState(Strict):
    """Begin a new run from a checkpoint of this one; the new run's id is in the answer."""

    name: str = Field(min_length=1, max_length=128)
    with_optimizer: bool = True


class Sample(Strict):
    """Sample from the run's present weights. `prompt` is token ids."""

    prompt: list[int] = Field(min_length=1, max_length=10_000_000, fail_fast=True)
    num_samples: int = Field(default=1, ge=1, le=MAX_SAMPLES)
    sampling_params: SamplingParams = SamplingParams()
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = Field(default=0, ge=0, le=MAX_TOPK_LOGPROBS)
    execution_policy: ExecutionPolicy | None = None
    """Strengthens the adapter's own policy."""

    def to_request(self) -> SampleRequest:
        """As a sampler takes it."""
        return SampleRequest(
            prompt=tuple(self.prompt),
            num_samples=self.num_samples,
            params=self.sampling_params,
            prompt_logprobs=self.prompt_logprobs,
            topk_prompt_logprobs=self.topk_prompt_logprobs,
        )


class ModelSample(Sample):
    """Sample from a base model, or from saved sampler weights, those of a private adapter too."""

    model: str = Field(min_length=1, max_length=512)
    """A base model's name, or tinker://RUN/sampler_weights/NAME."""


class TrainingClient(Strict):
    """A run as its owner sees it."""

    id: str
    base_model: str
    state: Literal["active", "blocked", "erased"]
    created_ms: int
    lora: dict[str, Any]
    optimizer: dict[str, Any]
    user_metadata: dict[str, Any]
    cause: str | None = None
    parent: str | None = None

    @classmethod
    def of(cls, stream: StreamRecord) -> TrainingClient:
        return cls.model_validate(
            {
                "id": stream.stream_id,
                "base_model": stream.base_model,
                "state": stream.state.value,
                "created_ms": stream.created_ms,
                "lora": stream.spec.get("lora") or {},
                "optimizer": stream.spec.get("optimizer") or {},
                "user_metadata": stream.spec.get("user_metadata") or {},
                "cause": stream.cause,
                "parent": stream.spec.get("parent"),
            }
        )


class TrainingClientList(Strict):
    """The tenant's runs, newest first."""

    training_clients: list[TrainingClient]


class FutureState(Strict):
    """Where an operation stands."""

    id: str
    training_client_id: str | None
    """None for a sample from a base model."""
    seq: int
    kind: str
    state: Literal["pending", "running", "completed", "failed", "cancelled"]
    created_ms: int
    finished_ms: int | None = None
    error: dict[str, Any] | None = None
    request_id: str | None = None
    """Of the request that submitted it: all that any process has logged about it has this id."""

    @classmethod
    def of(cls, future: Future) -> FutureState:
        operation = future.operation
        return cls.model_validate(
            {
                "id": future.future_id,
                "training_client_id": future.run_id,
                "seq": operation.seq,
                "kind": operation.kind.value,
                "state": operation.state.value,
                "created_ms": operation.created_ms,
                "finished_ms": operation.finished_ms,
                "error": operation.failure.to_body() if operation.failure else None,
                "request_id": operation.request_id,
            }
        )


class CreatedTrainingClient(Strict):
    """A run and the operation that creates it."""

    training_client: TrainingClient
    future: FutureState


class Artifact(Strict):
    """A saved artifact."""

    id: str
    path: str
    training_client_id: str
    name: str
    kind: str
    created_ms: int
    size_bytes: int
    sha256: str
    expires_ms: int | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Artifact:
        return cls(
            id=checkpoint.artifact_id,
            path=checkpoint.path,
            training_client_id=checkpoint.run_id,
            name=checkpoint.name,
            kind=checkpoint.kind.value,
            created_ms=checkpoint.created_ms,
            size_bytes=checkpoint.ref.size_bytes,
            sha256=checkpoint.ref.sha256,
            expires_ms=checkpoint.expires_ms,
        )


class ArtifactList(Strict):
    """A run's artifacts, oldest first."""

    artifacts: list[Artifact]


class Erased(Strict):
    """The run's key is deleted: nothing of it can be opened any more."""

    id: str
    state: Literal["erased"] = "erased"
