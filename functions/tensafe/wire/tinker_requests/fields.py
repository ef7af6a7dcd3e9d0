"""Field types that several bodies share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, JsonValue

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
from tensafe.wire.ids import COUNT_MAX
from tensafe.wire.json_body import build

_MAX_METADATA_ENTRIES: Final = 64
_MAX_METADATA_KEY_CHARS: Final = 128
_MAX_METADATA_VALUE_CHARS: Final = 4096
TTL_MIN_S: Final = 3600
TTL_MAX_S: Final = 3653 * 24 * 3600
"""Ten years, leap days included."""


def _check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    if len(metadata) > _MAX_METADATA_ENTRIES:
        raise ValueError(f"at most {_MAX_METADATA_ENTRIES} entries are kept")
    for key, value in metadata.items():
        if not 1 <= len(key) <= _MAX_METADATA_KEY_CHARS or len(value) > _MAX_METADATA_VALUE_CHARS:
            raise ValueError(
                f"a key has 1 to {_MAX_METADATA_KEY_CHARS} characters, "
                f"a value at most {_MAX_METADATA_VALUE_CHARS}"
            )
    return metadata


Id = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]
SeqId = Annotated[int, Field(ge=1, le=COUNT_MAX)]
"""A place in a run's log. The SDK counts from 1."""
UserMetadata = Annotated[dict[str, str], AfterValidator(_check_metadata)]
"""Strings to strings: the SDK's own response models accept nothing else back."""
TtlSeconds = Annotated[int, Field(ge=TTL_MIN_S, le=TTL_MAX_S)]
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
