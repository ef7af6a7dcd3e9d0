"""What can be counted, and the port that counts it.

A label is an identifier from a small set, never anything of a tenant's data: kinds, outcomes, routes, and a
digest in place of a privacy domain's name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Metric(StrEnum):
    """Names as CloudWatch shows them (namespace TenSafe)."""

    OPERATIONS_ENDED = "OperationsEnded"
    """By kind and outcome (completed, or the code of a failure)."""
    LEASE_LOST = "LeaseLost"
    HE_UNAVAILABLE = "HeUnavailable"
    DEAD_LETTERED = "DeadLettered"
    HTTP_5XX = "Http5xx"
    OPERATION_AGE_S = "OperationAgeSeconds"
    """Of the oldest operation that has not ended."""
    BUDGET_USED = "PrivacyBudgetUsedRatio"
    """Epsilon of a domain over the limit of the run that spent last, after its step."""

    @property
    def level(self) -> bool:
        """Whether it goes up and down; the others only grow."""
        return self in (Metric.OPERATION_AGE_S, Metric.BUDGET_USED)


@dataclass(frozen=True, slots=True)
class Series:
    """One number with its labels, by name in order."""

    metric: Metric
    labels: tuple[tuple[str, str], ...]
    value: float


class Metrics(Protocol):
    """Takes numbers; never raises, never blocks for long."""

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Count."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Note a level."""

    def series(self) -> list[Series]:
        """What a process has counted since it began, for adapters that keep it."""


class NoMetrics:
    """For a process that nobody watches: commands, tests."""

    def add(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        """Nothing is kept."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Nothing is kept."""

    def series(self) -> list[Series]:
        """Nothing was kept."""
        return []


def domain_label(tenant: str, domain: str) -> str:
    """What stands for a privacy domain: whoever knows both names can find it, nobody reads them off it."""
    return hashlib.sha256(f"{tenant}\0{domain}".encode()).hexdigest()[:12]
