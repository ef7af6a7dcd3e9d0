"""What a run with correlated noise must state: its coefficients' name and its sensitivity, computed again.

Banded inverse square root (Kalinin, McKenna, Upadhyay and Lampert 2025, arXiv 2505.12128): the noise of a
step combines p fresh vectors with the first p coefficients of (1 - X)^(1/2). The run is one Gaussian
mechanism. Its sensitivity over the clipping norm is the norm of the sum of the strategy's columns 0, b, and
so on to (k-1) b, for k steps of one added or removed unit that lie at least b apart. `bisr` says why; here
the columns are added by cumulative sums, not by its doubling.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

import numpy as np

ABOVE: Final = 1e-5
"""A stated sensitivity may be this much, relatively, above the computed one: it is rounded up by 1e-6."""
_ROUNDING: Final = 1e-9


def _coefficients(bandwidth: int) -> list[float]:
    """1, -1/2, -1/8, -1/16, ...: each from the one before, in the order in which the name was made."""
    found = [1.0]
    for index in range(1, bandwidth):
        found.append(found[-1] * (2 * index - 3) / (2 * index))
    return found


def coefficient_hash(bandwidth: int) -> str:
    """The name of the coefficients: SHA-256 of them as hexadecimal floats, one per line."""
    return hashlib.sha256("\n".join(map(float.hex, _coefficients(bandwidth))).encode()).hexdigest()


@lru_cache(maxsize=256)
def sensitivity(bandwidth: int, steps: int, participations: int, min_separation: int) -> float:
    """Over the clipping norm, in float64 and not rounded up.

    `participations` - 1 times `min_separation` must be less than `steps`.
    """
    from scipy.signal import lfilter  # noqa: PLC0415 - only ledgers with such runs pay for it

    impulse = np.zeros(-(-steps // min_separation) * min_separation)
    impulse[0] = 1.0
    column = np.asarray(lfilter([1.0], _coefficients(bandwidth), impulse), dtype=np.float64)
    column[steps:] = 0.0
    summed = np.cumsum(column.reshape(-1, min_separation), axis=0)  # the column and all its shifts by b
    summed[participations:] -= summed[:-participations].copy()  # without those from the k-th on
    return float(np.linalg.norm(summed.reshape(-1)[:steps]))


def is_sensitivity(stated: float, computed: float) -> bool:
    """Whether a stated sensitivity is the computed one, rounded up a little."""
    return computed * (1 - _ROUNDING) <= stated <= computed * (1 + ABOVE)
