"""Epsilon of a Gaussian mechanism from its closed form, for the verifier alone.

delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu): Balle and Wang 2018 (arXiv
1805.06530), Theorem 8, with mu = sensitivity / standard deviation. The ledger solves for epsilon with
dp-accounting; here its stated epsilon is put into the formula, so that the two share no code.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

ABOVE: Final = 1e-5
"""A stated epsilon may be this much, relatively, and 1e-8 above the exact one: it is rounded up."""
_ABOVE_ABSOLUTE: Final = 1e-8
_DELTA_TOLERANCE: Final = 1e-6
"""Relative, for rounding in the formula; it moves epsilon by less than 1e-6 of it for delta <= 0.1."""


def delta_at(epsilon: Float64Array, mu: Float64Array) -> Float64Array:
    """delta of mechanisms with these mu > 0 at these epsilon >= 0; float64, any one shape."""
    from scipy.special import log_ndtr  # noqa: PLC0415 - 0.1 s that only a verifier pays

    first = np.asarray(log_ndtr(mu / 2 - epsilon / mu), dtype=np.float64)
    second = epsilon + np.asarray(log_ndtr(-mu / 2 - epsilon / mu), dtype=np.float64)
    deltas: Float64Array = np.exp(first) * -np.expm1(np.minimum(second - first, 0.0))
    return deltas


def is_epsilon(stated: Float64Array, mu_squared: Float64Array, delta: float) -> npt.NDArray[np.bool_]:
    """Whether each stated epsilon is the mechanism's at `delta`: never below it, and at most 1e-5 above."""
    mu = np.sqrt(np.maximum(mu_squared, np.finfo(np.float64).tiny))
    enough = delta_at(stated, mu) <= delta * (1 + _DELTA_TOLERANCE)
    lower = np.maximum(stated * (1 - ABOVE) - _ABOVE_ABSOLUTE, 0.0)
    tight = (delta_at(lower, mu) >= delta * (1 - _DELTA_TOLERANCE)) | (lower == 0.0)
    return np.where(mu_squared == 0.0, stated == 0.0, enough & tight)


def epsilon_of(mu_squared: float, delta: float) -> float:
    """The exact epsilon at `delta`, by bisection and from above; 0.0 where the formula allows it."""
    if mu_squared == 0.0:
        return 0.0
    mu = np.array([np.sqrt(mu_squared)])

    def enough(epsilon: float) -> bool:
        return bool(delta_at(np.array([epsilon]), mu)[0] <= delta)

    if enough(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
