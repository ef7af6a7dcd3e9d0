"""The one release of a private step: the noisy sum over the public batch size."""

from __future__ import annotations

from typing import Protocol

import numpy.typing as npt

from tensafe.contracts.errors import Conflict, IntegrityError
from tensafe.privacy.bisr import coefficients
from tensafe.privacy.noise import (
    Float64Array,
    correlated_gaussian,
    gaussian,
    noise_key_id,
    round_to_grid,
)
from tensafe.privacy.records import RunRef


class Paid(Protocol):
    """What a release must know of its charge: a `Charge`, or a `DealtCharge`."""

    @property
    def run(self) -> RunRef: ...
    @property
    def step(self) -> int:
        """Keys the step's independent noise."""

    @property
    def standard_deviation(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def noise_key_id(self) -> str: ...
    @property
    def index(self) -> int | None:
        """The step's place in correlated noise."""

    @property
    def bisr_bandwidth(self) -> int | None: ...


def noisy_mean(
    charge: Paid, noise_secret: bytes, clipped_sum: npt.ArrayLike, *, offset: int = 0, threads: int = 1
) -> Float64Array:
    """(sum + noise) / batch_size, float64 [n]; needs the step's charge, so it cannot come before it.

    `clipped_sum` [n] is the sum over units of gradients clipped to norm `clip_norm` over all
    coordinates together, or its part that begins at coordinate `offset`; parts may be released in any
    order, each coordinate once. The noise is drawn in `threads`, the same whatever their number.
    Raises Conflict for another run's secret, InvalidRequest for a value that is not finite.
    """
    if noise_key_id(noise_secret) != charge.noise_key_id:
        raise Conflict(f"this is not the noise secret of run {charge.run.run_id}")
    total = round_to_grid(clipped_sum, charge.standard_deviation).reshape(-1)
    total += _noise(charge, noise_secret, total.size, offset, threads)
    total /= charge.batch_size
    return total


def _noise(charge: Paid, secret: bytes, count: int, offset: int, threads: int) -> Float64Array:
    deviation = charge.standard_deviation
    if charge.bisr_bandwidth is None:
        return gaussian(secret, charge.step, count, deviation, offset=offset, threads=threads)
    if charge.index is None:
        raise IntegrityError(f"the charge of step {charge.step} does not say which noise is its own")
    weights = coefficients(charge.bisr_bandwidth)
    return correlated_gaussian(
        secret, charge.index, weights, count, deviation, offset=offset, threads=threads
    )
