"""How a run's optimizer moves its parameters, as far as the run's numbers depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tensafe.contracts.training import DpSgdConfig, OptimizerConfig, PrivateConfig


@dataclass(frozen=True, slots=True)
class Method:
    """Fixed when a run is created and kept with its state.

    `rule`: sgd keeps no moments. `freeze_a`: A stays as the run began, and B alone is trained.
    """

    rule: Literal["adamw", "sgd"] = "adamw"
    freeze_a: bool = False

    @classmethod
    def of(cls, optimizer: OptimizerConfig) -> Method:
        """The method that a run's optimizer asks for."""
        return cls(
            rule="sgd" if isinstance(optimizer, DpSgdConfig) else "adamw",
            freeze_a=isinstance(optimizer, PrivateConfig) and optimizer.freeze_lora_a,
        )

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Method:
        """What `dataclasses.asdict` made of one. Raises ValueError or TypeError for anything else."""
        method = cls(**values)  # type: ignore[arg-type]  # checked below
        if method.rule not in ("adamw", "sgd") or not isinstance(method.freeze_a, bool):
            raise ValueError(f"not a method: {values!r}")
        return method


ADAMW = Method()
