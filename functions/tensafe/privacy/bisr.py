"""Banded inverse square root (BISR): its coefficients, and its sensitivity under k-b participation.

Kalinin, McKenna, Upadhyay and Lampert 2025, "Back to Square Roots" (arXiv 2505.12128). The sums x_0, x_1,
... of a run's steps are released as x_t + sigma C (c_0 z_t + c_1 z_{t-1} + ... + c_{p-1} z_{t-p+1}), with
z_t fresh standard normal vectors and c the first p coefficients of (1 - X)^(1/2): the noise of one step
takes back part of the noise before it, so that sums over steps are less noisy than each is.

Multiplying the released sequence by the strategy matrix M, lower triangular Toeplitz with the
coefficients of 1 / (c_0 + c_1 X + ...) as its first column, gives M x + sigma C z: one Gaussian mechanism.

Neighbouring relation: add or remove one unit, which moves each x_t by at most C in norm, in at most k
steps that lie at least b apart. Its sensitivity is exactly C times the norm of the sum of the columns 0,
b, ..., (k-1) b of M. Why (as in Kalinin and Lampert 2024, arXiv 2405.13763, Theorem 2): M's first column
m_0, m_1, ... is not negative and does not grow, so the inner product of its columns i < j, the sum over s
of m_s m_{s+j-i} for s < n - j, is not negative, and grows if j or j - i shrink; among all allowed sets of
steps, that one has each of its steps and each of their distances smallest.

The column does not grow for any p: with a_i = -c_i > 0 it is m_i = a_1 m_{i-1} + ... + a_{p-1} m_{i-p+1}.
Below p it is that of (1 - X)^(-1/2), which falls; m_p lacks a positive term of the falling one; from there
on m_i - m_{i+1} is a sum of earlier differences with positive weights.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import BISR_MAX_BANDWIDTH, BISR_MAX_STEPS

Float64Array = npt.NDArray[np.float64]

_ROUNDING: Final = 1e-6
"""Upper bound of the relative error of the sensitivity in float64: every term is positive, so it is at
most a few times BISR_MAX_BANDWIDTH * BISR_MAX_STEPS * 2**-53 = 3e-8."""


def coefficients(bandwidth: int) -> tuple[float, ...]:
    """c_0 ... c_{p-1} of (1 - X)^(1/2): 1, -1/2, -1/8, -1/16, ... Raises InvalidRequest."""
    if not 1 <= bandwidth <= BISR_MAX_BANDWIDTH:
        raise InvalidRequest(
            f"the bandwidth must be from 1 to {BISR_MAX_BANDWIDTH}, got {bandwidth}",
            field="optimizer.bisr_bandwidth",
        )
    found = [1.0]
    for index in range(1, bandwidth):
        found.append(found[-1] * (2 * index - 3) / (2 * index))
    return tuple(found)


def coefficient_hash(bandwidth: int) -> str:
    """SHA-256 of the coefficients as hexadecimal floats, one per line: what a ledger row names them by."""
    return hashlib.sha256("\n".join(map(float.hex, coefficients(bandwidth))).encode()).hexdigest()


def strategy_column(bandwidth: int, steps: int) -> Float64Array:
    """The first column m_0 ... m_{n-1} of the strategy matrix, float64 [steps]."""
    # Imported here: only private runs with correlated noise should pay for it.
    from scipy.signal import lfilter  # noqa: PLC0415

    impulse = np.zeros(steps)
    impulse[0] = 1.0
    return np.asarray(lfilter([1.0], coefficients(bandwidth), impulse), dtype=np.float64)


def most_participations(max_participations: int, min_separation: int, steps: int) -> int:
    """How often a unit can take part in `steps` steps: min(k, ceil(n / b))."""
    return min(max_participations, -(-steps // min_separation))


@lru_cache(maxsize=1024)
def sensitivity(bandwidth: int, *, steps: int, participations: int, min_separation: int) -> float:
    """Sensitivity of the whole mechanism over `clip_norm`, rounded up; mu of the run is this over sigma.

    At least the exact value and at most 1 + 2e-6 times it. sqrt(participations) for bandwidth 1, which is
    independent noise. Raises InvalidRequest where the formula does not hold: no such schedule fits into
    `steps`, or it is longer than BISR_MAX_STEPS.
    """
    if not 1 <= steps <= BISR_MAX_STEPS:
        raise InvalidRequest(
            f"correlated noise needs max_steps from 1 to {BISR_MAX_STEPS}, got {steps}",
            field="optimizer.max_steps",
        )
    if participations < 1 or min_separation < 1 or (participations - 1) * min_separation >= steps:
        raise InvalidRequest(
            f"{participations} participations that lie {min_separation} apart do not fit into {steps} steps",
            field="optimizer.max_participations",
        )
    column = strategy_column(bandwidth, steps)
    total = _every(column, participations, min_separation)
    return float(np.sqrt(np.sum(total * total))) * (1.0 + _ROUNDING)


def _every(column: Float64Array, count: int, distance: int) -> Float64Array:
    """The sum of `column` shifted down by 0, 1, ..., count - 1 times `distance`, by doubling."""
    total, done = np.zeros_like(column), 0
    window, size = column, 1
    while count:
        if count & 1:
            total = total + _shifted(window, done * distance)
            done += size
        count >>= 1
        if count:
            window = window + _shifted(window, size * distance)
            size *= 2
    return total


def _shifted(values: Float64Array, down: int) -> Float64Array:
    moved = np.zeros_like(values)
    if down < values.size:
        moved[down:] = values[: values.size - down]
    return moved
