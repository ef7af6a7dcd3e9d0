"""The base of all answers and how they become bytes."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from pydantic import BaseModel, ConfigDict


class ResponseModel(BaseModel):
    """An answer: frozen, and built from known fields alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def to_json(response: ResponseModel) -> bytes:
    """The body; fields that are None are left out."""
    return response.model_dump_json(exclude_none=True).encode()


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """`metrics` for JSON: a value that is not finite is replaced by `{name}_is_not_finite` = 1."""
    return {
        name if isfinite(value) else f"{name}_is_not_finite": value if isfinite(value) else 1.0
        for name, value in metrics.items()
    }
