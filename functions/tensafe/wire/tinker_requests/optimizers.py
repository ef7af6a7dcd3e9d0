"""Optimizers and the parameters of their steps, as the SDK names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import JsonValue

from tensafe.contracts.errors import InvalidRequest, Unsupported
from tensafe.contracts.training import (
    AdamParams,
    AdamWConfig,
    DpAdamWConfig,
    DpSgdConfig,
    OptimizerConfig,
    SgdParams,
    StepParams,
)
from tensafe.wire.json_body import build

OptimizerJson = dict[str, JsonValue]
_OPTIMIZERS: Final[Mapping[str, type[OptimizerConfig]]] = {
    "adamw": AdamWConfig,
    "tensafe_dp_adamw": DpAdamWConfig,
    "tensafe_dp_sgd": DpSgdConfig,
}


def optimizer_type(values: Mapping[str, Any], field: str) -> str:
    """The `type` of an optimizer object if this service has that optimizer, else an error that lists them."""
    name = values.get("type")
    if not isinstance(name, str):
        raise InvalidRequest(f"{field}.type is missing", field=f"{field}.type")
    if name not in _OPTIMIZERS:
        raise Unsupported(
            f"optimizer {name[:64]!r} is not supported; supported: {', '.join(_OPTIMIZERS)}",
            field=f"{field}.type",
        )
    return name


def to_optimizer_config(values: OptimizerJson | None) -> OptimizerConfig:
    """The optimizer that a run is created with; none given means AdamW."""
    if values is None:
        return AdamWConfig()
    return build(_OPTIMIZERS[optimizer_type(values, "optimizer_config")], values, field="optimizer_config")


def to_step_params(values: OptimizerJson, family: str, *, field: str) -> StepParams:
    """The parameters of a step of an optimizer of this type; what it does not have is refused by name."""
    given = {name: value for name, value in values.items() if name != "type"}
    if family == "tensafe_dp_sgd":
        return build(SgdParams, given, field=field)
    return build(AdamParams, given, field=field)
