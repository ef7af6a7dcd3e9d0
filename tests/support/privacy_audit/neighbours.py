"""Sensitivity of a clipped sum: how far the sum moves when one unit goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tensafe_gpu.trainer import accumulate
from tensafe_gpu.trainer.layout import Layout
from tests.support.privacy_audit.dirac import pairs_of

SumOf = Callable[[Sequence[int]], npt.NDArray[np.float64]]
"""The released sum, noise off, float64 [P], of the units with these positions."""


def sensitivity(sum_of: SumOf, units: int, leaver: int) -> float:
    """L2 distance between the sum of all units and the sum without `leaver`: add-or-remove-one-unit."""
    everyone = list(range(units))
    return float(np.linalg.norm(sum_of(everyone) - sum_of([u for u in everyone if u != leaver])))


def sum_by_trainer(
    gradients: torch.Tensor, unit_of: Sequence[int], clip_norm: float, layout: Layout, *, call_units: int
) -> SumOf:
    """Sum of the trainer's ClippedSum over per-example gradients float32 [N, P], `call_units` at a time.

    Each call of a run has a ClippedSum of its own, whose totals are then added in float32.
    """

    def sum_of(units: Sequence[int]) -> npt.NDArray[np.float64]:
        total = torch.zeros(layout.numel)
        for first in range(0, len(units), call_units):
            here = units[first : first + call_units]
            rows = [row for row, unit in enumerate(unit_of) if unit in here]
            numbers = [here.index(unit_of[row]) for row in rows]
            clipped = accumulate.ClippedSum(layout, clip_norm, torch.device("cpu"))
            # A copy: rows that are not finite are zeroed in place.
            clipped.add_units(pairs_of(layout, gradients[rows].clone()), numbers, len(here))
            total += clipped.total
        return total.double().numpy()

    return sum_of
