"""How a run's optimizer moves its parameters, as far as the run's numbers depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tensafe.contracts.training import DpSgdConfig, OptimizerConfig


@dataclass(frozen=True, slots=True)
class Method:
    """Fixed when a run is created and kept with its state. `rule`: sgd keeps no moments."""

    rule: Literal["adamw", "sgd"] = "adamw"

    @classmethod
    def of(cls, optimizer: OptimizerConfig) -> Method:
        """The method that a run's optimizer asks for."""
        return cls(rule="sgd" if isinstance(optimizer, DpSgdConfig) else "adamw")

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Method:
        """What `dataclasses.asdict` made of one. Raises ValueError or TypeError for anything else."""
        method = cls(**values)  # type: ignore[arg-type]  # checked below
        if method.rule not in ("adamw", "sgd"):
            raise ValueError(f"rule {method.rule!r}")
        return method


ADAMW = Method()
