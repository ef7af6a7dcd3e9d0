"""What a trainer's steps release, seen at the one place where a noisy sum leaves the privacy room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from tensafe.privacy import release
from tensafe.privacy.dealt_rows import DealtCharge
from tensafe.privacy.noise import Float64Array
from tensafe.privacy.statements import Charge
from tensafe_gpu.trainer import dealt_steps, private_steps


@dataclass(frozen=True, slots=True)
class Released:
    """One release: the charge behind it, the clipped sum, and what left, times the public divisor."""

    charge: Charge | DealtCharge
    clipped_sum: Float64Array
    noisy_sum: Float64Array

    @property
    def noise(self) -> Float64Array:
        """In units of the standard deviation that was charged."""
        return (self.noisy_sum - self.clipped_sum) / self.charge.standard_deviation


def watch_releases(patch: pytest.MonkeyPatch) -> list[Released]:
    """The releases of all trainers of this process from now on, in order."""
    seen: list[Released] = []

    def watched(
        charge: Charge | DealtCharge, secret: bytes, total: npt.ArrayLike, **options: int
    ) -> Float64Array:
        mean = release.noisy_mean(charge, secret, total, **options)
        clipped_sum = np.array(total, dtype=np.float64)
        seen.append(Released(charge, clipped_sum, mean * charge.batch_size))
        return mean

    patch.setattr(private_steps, "noisy_mean", watched)
    patch.setattr(dealt_steps, "noisy_mean", watched)
    return seen
