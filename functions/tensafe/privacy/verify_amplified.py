"""Epsilon of dealt runs for the verifier alone, by code of its own.

Privacy loss random variables on a grid, composed by FFT (Gopi, Lee and Wutschitz 2021, arXiv 2106.02848).
Each value's mass is split between its two neighbours on the grid, which keeps the mean, so that errors do
not add up over steps; the spacing is a small share of a step's deviation. This is an estimate, within about
0.1 % of the exact value: what charges rounds upwards with other code (dp-accounting), and must be above it.

Mechanism and pairs: Poisson subsampling of a Gaussian in both directions and, where the cap cuts, with the
probability of that, the pair of a unit that takes another's place (Ganesh 2025, arXiv 2508.15089).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
_Mixture = tuple[tuple[float, float], ...]

BELOW: Final = 2e-3
"""A stated epsilon may be this much, relatively, below the estimate: the estimate's own error."""
ABOVE: Final = 0.2
"""And so much above it: rounded up, most where q is tiny and steps are many (docs/privacy.md)."""
_ABSOLUTE: Final = 1e-3
_SHARE: Final = 0.04
"""Spacing of the grid over a step's deviation."""
_DEVIATIONS: Final = 14.0
_MAX_CELLS: Final = 1 << 23
_POINTS: Final = 40_001
_TAIL: Final = 10.0


@dataclass(frozen=True, slots=True)
class Sampled:
    """So many dealt steps: N as accounted, q, cap, sigma."""

    units: int
    probability: float
    cap: int
    sigma: float
    steps: int


@dataclass(frozen=True, slots=True)
class _Losses:
    """Values of a step's privacy loss and their masses under the first distribution of the pair."""

    values: Float64Array
    masses: Float64Array

    @property
    def mean(self) -> float:
        return float(self.values @ self.masses)

    @property
    def variance(self) -> float:
        return float((self.values - self.mean) ** 2 @ self.masses)


def is_epsilon(stated: float, computed: float) -> bool:
    """Whether a stated epsilon is the computed one or above it, by what rounding up explains."""
    return computed * (1 - BELOW) - _ABSOLUTE <= stated <= computed * (1 + ABOVE) + 10 * _ABSOLUTE


@lru_cache(maxsize=4096)
def epsilon_of(sampled: frozenset[Sampled], mu_squared: float, delta: float) -> float:
    """Epsilon at `delta` of all these dealt steps and a Gaussian mechanism of this mu^2: the worse direction.

    `sampled` holds at least one step.
    """
    return max(_one_direction(sorted(sampled, key=repr), mu_squared, delta, sign) for sign in (1.0, -1.0))


def _one_direction(sampled: Iterable[Sampled], mu_squared: float, delta: float, sign: float) -> float:
    parts = [(_losses(one, sign), one.steps) for one in sampled]
    steps = sum(count for _, count in parts)
    mean = mu_squared / 2 + math.fsum(count * losses.mean for losses, count in parts)
    variance = mu_squared + math.fsum(count * losses.variance for losses, count in parts)
    widest = max(float(np.abs(losses.values).max()) for losses, _ in parts)
    reach = 2 * (abs(mean) + _DEVIATIONS * math.sqrt(variance) + widest)
    spacing = _SHARE * math.sqrt(variance / steps)
    cells = 1 << math.ceil(math.log2(min(max(reach / spacing, 1 << 12), _MAX_CELLS)))
    spacing = max(spacing, reach / cells)
    spectrum = np.ones(cells // 2 + 1, dtype=np.complex128)
    for losses, count in parts:
        spectrum *= np.fft.rfft(_on_grid(losses, spacing, cells)) ** count
    if mu_squared:
        spectrum *= np.fft.rfft(_on_grid(_gaussian(mu_squared), spacing, cells))
    masses = np.fft.irfft(spectrum, cells)
    values = spacing * ((np.arange(cells) + cells // 2) % cells - cells // 2).astype(np.float64)
    return _solve(values, np.asarray(masses, dtype=np.float64), delta)


def _solve(values: Float64Array, masses: Float64Array, delta: float) -> float:
    positive = values > 0
    order = np.argsort(values[positive])
    losses, weights = values[positive][order], np.maximum(masses[positive][order], 0.0)

    def delta_at(epsilon: float) -> float:
        first = int(np.searchsorted(losses, epsilon, side="right"))
        return float(weights[first:] @ -np.expm1(epsilon - losses[first:]))

    low, high = 0.0, float(losses[-1])
    if delta_at(0.0) <= delta:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if delta_at(middle) <= delta else (middle, high)
    return high


def _on_grid(losses: _Losses, spacing: float, cells: int) -> Float64Array:
    """Masses at multiples of the spacing, negative ones from the end; means are kept."""
    place = losses.values / spacing
    below = np.floor(place).astype(np.int64)
    above = place - below
    grid = np.zeros(cells)
    np.add.at(grid, below % cells, losses.masses * (1 - above))
    np.add.at(grid, (below + 1) % cells, losses.masses * above)
    return grid


@lru_cache(maxsize=256)
def _losses(one: Sampled, sign: float) -> _Losses:
    """Of one step; `sign` 1 for the unit's data present in the first distribution, -1 in the second."""
    q, sigma = one.probability, one.sigma
    with_unit = ((1 - q, 0.0), (q, 1.0))
    without = ((1.0, 0.0),)
    first, second = (with_unit, without) if sign > 0 else (without, with_unit)
    plain = _pair_losses(first, second, sigma)
    cut, there = _truncation(one)
    if cut == 0.0:
        return plain
    swapped = _pair_losses(((1 - there, 0.0), (there, 2.0)), ((1 - there, 0.0), (there, -2.0)), sigma)
    return _Losses(
        np.concatenate([plain.values, swapped.values]),
        np.concatenate([plain.masses * (1 - cut), swapped.masses * cut]),
    )


def _truncation(one: Sampled) -> tuple[float, float]:
    """Probability that the cap of others is reached, and then that the unit is in the batch."""
    from scipy.stats import binom  # noqa: PLC0415 - only ledgers with dealt runs pay for it

    cut = float(binom.sf(one.cap - 1, one.units - 1, one.probability))
    if cut < 1e-30:
        return 0.0, 0.0
    more = float(binom.sf(one.cap, one.units, one.probability))
    return cut, more * one.cap / one.units / cut


def _pair_losses(first: _Mixture, second: _Mixture, sigma: float) -> _Losses:
    """Of mixtures of Gaussians: (weight, mean) each, one standard deviation; on equidistant points."""
    edge = _TAIL * sigma + 2.0
    points = np.linspace(-edge, edge, _POINTS)
    upper, lower = _log_density(first, sigma, points), _log_density(second, sigma, points)
    masses = np.exp(upper)
    return _Losses(upper - lower, masses / masses.sum())


def _log_density(mixture: _Mixture, sigma: float, points: Float64Array) -> Float64Array:
    """Up to a constant."""
    terms = [math.log(weight) - (points - mean) ** 2 / (2 * sigma**2) for weight, mean in mixture if weight]
    return np.asarray(np.logaddexp.reduce(terms, axis=0), dtype=np.float64)


def _gaussian(mu_squared: float) -> _Losses:
    """The loss of a Gaussian mechanism is Gaussian itself: mean mu^2 / 2, variance mu^2."""
    mu = math.sqrt(mu_squared)
    normal = np.linspace(-_TAIL, _TAIL, _POINTS)
    masses = np.exp(-(normal**2) / 2)
    return _Losses(mu_squared / 2 + mu * normal, masses / masses.sum())
