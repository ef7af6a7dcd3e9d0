"""A lower bound of epsilon from one run (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95


def correct_guesses(scores: npt.NDArray[np.float64], included: npt.NDArray[np.bool_], guesses: int) -> int:
    """How many of `guesses` are right: half the guesses say "in" of the highest scores, half "out" of the
    lowest. All other canaries are abstained from."""
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int((~included[order[:half]]).sum() + included[order[len(order) - half :]].sum())


def p_value(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Largest probability of at least `correct` right guesses under (epsilon, delta)-DP.

    Theorem 5.2 with all canaries random: P[W >= v] <= P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i,
    where B is binomial of `guesses` trials that succeed with probability e^epsilon / (1 + e^epsilon).
    Neighbouring relation: add or remove one canary.
    """
    success = 1.0 / (1.0 + np.exp(-epsilon))
    below = stats.binom.cdf(np.arange(-1, correct), guesses, success)  # P[B <= -1], ..., P[B <= v - 1]
    steps = np.arange(1, correct + 1)
    alpha = float(np.max((below[-1] - below[-1 - steps]) / steps, initial=0.0))
    return float(min(1.0, stats.binom.sf(correct - 1, guesses, success) + 2 * canaries * delta * alpha))


def epsilon_lower_bound(
    scores: npt.NDArray[np.float64],
    included: npt.NDArray[np.bool_],
    delta: float,
    *,
    guesses: int,
    confidence: float = CONFIDENCE,
) -> float:
    """Epsilon that the run exceeds at `delta` with this confidence; 0.0 when nothing can be said.

    `guesses` must be chosen before the scores are seen: the best of several needs a smaller 1 - confidence.
    """
    correct = correct_guesses(scores, included, guesses)

    def refuted(epsilon: float) -> bool:
        return p_value(correct, guesses, len(scores), epsilon, delta) <= 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
