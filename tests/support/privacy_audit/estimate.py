"""mu of a Gaussian mechanism: as claimed, and as estimated from scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats


def delta_of(epsilon: float, mu: float) -> float:
    """delta at `epsilon` of a Gaussian mechanism: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8."""
    if mu <= 0.0:
        return 0.0
    with np.errstate(over="ignore"):
        second = math.exp(min(700.0, epsilon + float(stats.norm.logcdf(-mu / 2 - epsilon / mu))))
    return float(stats.norm.cdf(mu / 2 - epsilon / mu)) - second


def mu_of(epsilon: float, delta: float) -> float:
    """The mu of the Gaussian mechanism that is exactly (epsilon, delta)-DP: what a claim is worth."""
    return float(optimize.brentq(lambda mu: delta_of(epsilon, mu) - delta, 1e-6, 1e3, xtol=1e-12))


def epsilon_of(mu: float, delta: float) -> float:
    """The inverse of `mu_of`; 0.0 if delta alone covers it."""
    if delta_of(0.0, mu) <= delta:
        return 0.0
    return float(optimize.brentq(lambda eps: delta_of(eps, mu) - delta, 0.0, mu * mu + 40 * mu, xtol=1e-12))


@dataclass(frozen=True, slots=True)
class MuEstimate:
    """mu as seen in the scores, and its standard error if they are Gaussian."""

    mu: float
    standard_error: float

    def z_against(self, claimed_mu: float) -> float:
        """Deviations by which the run differs from the claim: positive means more leaks than is claimed."""
        return (self.mu - claimed_mu) / self.standard_error


def estimate_mu(scores: npt.NDArray[np.float64], included: npt.NDArray[np.bool_]) -> MuEstimate:
    """Distance of the means of those in and those out, over their common deviation (Cohen's d).

    Standard error as of Hedges and Olkin 1985, section 5.E: sqrt(1/n1 + 1/n0 + d^2 / (2 (n1 + n0))).
    """
    inside, outside = scores[included], scores[~included]
    n1, n0 = len(inside), len(outside)
    pooled = math.sqrt((inside.var(ddof=1) * (n1 - 1) + outside.var(ddof=1) * (n0 - 1)) / (n1 + n0 - 2))
    mu = float(inside.mean() - outside.mean()) / pooled
    return MuEstimate(mu, math.sqrt(1 / n1 + 1 / n0 + mu * mu / (2 * (n1 + n0))))
