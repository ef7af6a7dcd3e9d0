"""Creating a run, asking about it, stepping its optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe.contracts.payloads import CreatePayload
from tensafe.contracts.training import LoraSpec, StepParams
from tensafe.wire.ids import RequestId, RunId, check_session_id
from tensafe.wire.json_body import RequestModel, build
from tensafe.wire.tinker_requests.fields import Count, Id, Name, SeqId, UserMetadata
from tensafe.wire.tinker_requests.optimizers import (
    OptimizerJson,
    optimizer_type,
    to_optimizer_config,
    to_step_params,
)


class LoraConfigJson(RequestModel):
    """The shape of the adapter as the SDK sends it."""

    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CreateModelBody(RequestModel):
    """POST create_model. Repeating (session_id, model_seq_id) is the same run."""

    session_id: Id
    model_seq_id: Count
    base_model: Name
    user_metadata: UserMetadata | None = None
    lora_config: LoraConfigJson | None = None
    optimizer_config: OptimizerJson | None = None
    type: Literal["create_model"] = "create_model"

    def to_request_id(self) -> RequestId:
        """The run's operation 0."""
        return RequestId(RunId(check_session_id(self.session_id), self.model_seq_id), 0)

    def to_payload(self, *, seed_if_absent: int) -> CreatePayload:
        """The adapter and its optimizer; the service chooses the seed when the client does not.

        Unsupported without lora_config, and for an optimizer that this service lacks.
        """
        if self.lora_config is None:
            raise Unsupported(
                "lora_config is missing: this service trains LoRA adapters, not whole models",
                field="lora_config",
            )
        values = self.lora_config.model_dump()
        if values["seed"] is None:
            values["seed"] = seed_if_absent
        lora = build(LoraSpec, values, field="lora_config")
        return CreatePayload(lora=lora, optimizer=to_optimizer_config(self.optimizer_config))


class GetInfoBody(RequestModel):
    """POST get_info."""

    model_id: Id
    type: Literal["get_info"] = "get_info"

    def to_run_id(self) -> RunId:
        """The run asked about."""
        return RunId.parse(self.model_id)


@dataclass(frozen=True, slots=True)
class OptimStep:
    """One optimizer step. `optimizer` None: Adam's parameters, which the SDK sends without a type."""

    request_id: RequestId
    params: StepParams
    optimizer: str | None

    def check_family(self, family: object) -> None:
        """Raise InvalidRequest unless the step is for an optimizer of this type: that of its run."""
        if self.optimizer not in (None, family):
            raise InvalidRequest(
                f"this run's optimizer is {family}, fixed when it was created; name that one, or create "
                "another run",
                field="optimizer_params.type",
            )
        if self.optimizer is None and family == "tensafe_dp_sgd":
            raise InvalidRequest(
                f"these are Adam's parameters, and this run's optimizer is {family}; send its own: "
                f"OptimParamsBase(type={family!r}, learning_rate=...)",
                field="adam_params",
            )


class OptimStepBody(RequestModel):
    """POST optim_step: the parameters under one of three names, of which the SDK uses the first two."""

    model_id: Id
    seq_id: SeqId
    adam_params: OptimizerJson | None = None
    optimizer_params: OptimizerJson | None = None
    optim_params: OptimizerJson | None = None
    type: Literal["optim_step"] = "optim_step"

    def to_optim_step(self) -> OptimStep:
        """The step; a parameter that its optimizer does not have is refused by name."""
        given = {
            name: value
            for name in ("adam_params", "optimizer_params", "optim_params")
            if (value := getattr(self, name)) is not None
        }
        if len(given) != 1:
            raise InvalidRequest("give exactly one of adam_params and optimizer_params", field="adam_params")
        ((field, values),) = given.items()
        optimizer = None
        if field == "optimizer_params" or "type" in values:
            optimizer = optimizer_type(values, field)
        params = to_step_params(values, optimizer or "adamw", field=field)
        return OptimStep(RequestId(RunId.parse(self.model_id), self.seq_id), params, optimizer)


class CreateCustomLossBody(RequestModel):
    """POST create_custom_loss, which the client configuration turns off."""

    session_id: Id
    name: str = Field(max_length=256)
