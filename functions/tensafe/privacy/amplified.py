"""Epsilon of dealt runs: truncated-Poisson-subsampled Gaussian mechanisms and their compositions.

Neighbouring relation: zero out one unit, or add or remove one; the bound holds for both.

One step draws every unit with probability q, keeps a uniform subset of `batch_cap` if more are drawn,
and releases their clipped sum with Gaussian noise of standard deviation sigma * C. Condition on
whether at least `batch_cap` of the other N - 1 units are drawn. If not, nothing is ever cut and the step
is the Poisson-subsampled Gaussian of sensitivity C. If so, the unit can only come in for another one,
so the sum moves by at most 2C, with probability P(more than cap drawn) * cap / N over the condition's
(Ganesh 2025, arXiv 2508.15089; dp-accounting's from_truncated_subsampled_gaussian_mechanism, which
bounds that case by the pair N(2), N(-2) around 0, each met with that probability). For zero-out
adjacency the second case is a mixture of N(0) with N(a) against N(0) with N(b), where |a| <= 2, |b| <= 1
and |a - b| <= 1: its hockey-stick divergence is one between a Gaussian and a mixture of Gaussians at
distances |a - b| and |a| (or |b|), which grows with them (Choquette-Choo et al. 2023, arXiv 2310.15526,
Corollary 4.7) and so is at most that of the pair, whose distances are 4 and 2.

Loss distributions are rounded up to a grid (Doroshenko et al. 2022, arXiv 2207.04380, "connect the
dots"), so epsilon is an upper bound; docs/privacy.md says how close it is. The grid is 1e-3, halved as
often as the losses of one step are small beside it: rounding adds about g^2 / 6 to the variance
q^2 (exp(1/sigma^2) - 1) of a step's loss, which at q = 1e-4 and sigma = 1 would double epsilon.

Everything that composes must be fixed before any of it is released: see docs/privacy.md, "Dealt".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from tensafe.contracts.errors import InvalidRequest
from tensafe.privacy.accountant import epsilon as gaussian_epsilon
from tensafe.privacy.distribution_cache import DistributionCache

ACCOUNTANT: Final = "dp-accounting/pld-truncated-poisson/v1"
"""Names the computation in ledger rows; its meaning never changes."""
GRID: Final = 1e-3
"""Coarsest spacing of the losses that distributions are rounded up to."""
_MAX_HALVINGS: Final = 6
_GRID_SHARE: Final = 0.25
"""Most that the spacing may be of the standard deviation of a step's loss: within about 0.5 % of epsilon."""
_NEVER: Final = 1e-22
"""A cut less likely than this in a step is left to the margin of delta: 2,000 runs of MAX_STEPS, 2e-13."""
MIN_DELTA: Final = 1e-9
MAX_STEPS: Final = 1_000_000
MIN_SIGMA: Final = 0.1
MAX_SIGMA: Final = 1e4
HOPELESS_EPSILON: Final = 300.0
"""Epsilon above this is reported as infinite: it protects nobody, and would take much memory to compute."""
_DELTA_MARGIN: Final = 1e-3
"""Share of delta left to what is rounded or not counted: _NEVER, and FFTs of few steps."""
_ROUNDING_PER_STEP: Final = 1e-15
"""Delta left to the rounding of FFTs. Mass that they lost: 3e-10 in 1,000,000 steps, 2e-12 in 5,000."""
_HOP: Final = 8
_SIGMA_STEP: Final = 2e-4
_CACHE: Final = DistributionCache()


@dataclass(frozen=True, slots=True)
class DealtGaussian:
    """A dealt step's mechanism: N units, q, batch cap, and sigma over the clipping norm.

    Raises InvalidRequest naming the field.
    """

    units: int
    sampling_probability: float
    batch_cap: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        if self.units < 1 or self.batch_cap < 1:
            raise InvalidRequest(
                f"units and batch_cap must be at least 1, got {self.units} and {self.batch_cap}",
                field="batch_cap",
            )
        if not 2.0**-64 <= self.sampling_probability <= 1.0:
            raise InvalidRequest(
                f"sampling_probability must be from 2**-64 to 1, got {self.sampling_probability!r}",
                field="sampling_probability",
            )
        if not MIN_SIGMA <= self.noise_multiplier <= MAX_SIGMA:
            raise InvalidRequest(
                f"noise_multiplier must be from {MIN_SIGMA:g} to {MAX_SIGMA:g} in a dealt run, "
                f"got {self.noise_multiplier!r}",
                field="noise_multiplier",
            )


@dataclass(frozen=True, slots=True)
class Spent:
    """What a domain's runs release, at most: dealt steps by mechanism, and mu^2 of all bounded runs.

    `dealt`: (mechanism, steps) of every dealt run, abandoned deals included. `gaussian_mu_squared`: as
    `accountant.mu_squared` gives it.
    """

    dealt: tuple[tuple[DealtGaussian, int], ...] = ()
    gaussian_mu_squared: float = 0.0

    def __post_init__(self) -> None:
        if any(not 0 <= steps <= MAX_STEPS for _, steps in self.dealt):
            raise InvalidRequest(f"steps must be from 0 to {MAX_STEPS}", field="max_steps")
        if len(dict(self.dealt)) != len(self.dealt):
            raise InvalidRequest("a mechanism is named twice; add its steps up with Spent.plus")
        if not self.gaussian_mu_squared >= 0.0:
            raise InvalidRequest("mu^2 must not be negative")

    def plus(self, mechanism: DealtGaussian, steps: int) -> Spent:
        """With so many more steps of a mechanism; equal mechanisms of several runs are added up."""
        counts = dict(self.dealt)
        counts[mechanism] = counts.get(mechanism, 0) + steps
        return Spent(tuple(counts.items()), self.gaussian_mu_squared)


def epsilon(mechanism: DealtGaussian, steps: int, delta: float) -> float:
    """Epsilon at `delta` of `steps` deals of one run; at least the exact value, inf above 300."""
    return total_epsilon(Spent(((mechanism, steps),)), delta)


def total_epsilon(spent: Spent, delta: float) -> float:
    """Epsilon at `delta` of everything that is spent; at least the exact value.

    Infinite above 300, and where the rounding of so many steps (1e-15 each) would use up delta. Bounded
    runs alone are computed exactly, as `accountant.epsilon` does. Raises InvalidRequest.
    """
    _check_delta(delta)
    if not any(steps for _, steps in spent.dealt):
        # mu^2 as one participation of noise 1 / mu.
        mu_2 = spent.gaussian_mu_squared
        return gaussian_epsilon({"": (1.0 / math.sqrt(mu_2), 1)}, delta) if mu_2 else 0.0
    return _total_epsilon(spent, delta)


def max_steps(max_epsilon: float, mechanism: DealtGaussian, delta: float, others: Spent | None = None) -> int:
    """Most steps such that epsilon, with everything in `others`, stays within; 0 if not even one fits.

    Found once per set of arguments (about a second), at most MAX_STEPS; admission then compares integers.
    """
    _check_delta(delta)
    return _max_steps(max_epsilon, mechanism, delta, others or Spent())


def noise_multiplier_for(
    target_epsilon: float,
    delta: float,
    *,
    units: int,
    sampling_probability: float,
    batch_cap: int,
    steps: int,
) -> float:
    """Smallest sigma, rounded up to 4 significant digits, with which `steps` deals stay within the target.

    Checked with `epsilon`. Raises InvalidRequest if no sigma up to 10,000 is enough.
    """
    _check_delta(delta)

    def fits(sigma: float, cap: int = batch_cap) -> bool:
        mechanism = DealtGaussian(units, sampling_probability, cap, sigma)
        return epsilon(mechanism, steps, delta) <= target_epsilon

    if not fits(MAX_SIGMA):
        raise InvalidRequest(
            f"no noise_multiplier up to {MAX_SIGMA:g} keeps {steps} steps within epsilon {target_epsilon!r}",
            field="target_epsilon",
        )
    # A cap costs time to compute and hardly any epsilon where it is seldom reached: begin without.
    start = _smallest(lambda sigma: fits(sigma, units), MIN_SIGMA, growth=4.0)
    return _first_fitting(_smallest(fits, start, growth=1.0 + 5 * _SIGMA_STEP), fits)


def _smallest(fits: Callable[[float], bool], low: float, growth: float) -> float:
    """A sigma that fits, from `low` up, at most 1 + _SIGMA_STEP times one that does not (or `low`)."""
    if fits(low):
        return low
    high = low
    while not fits(high):
        low, high, growth = high, min(high * growth, MAX_SIGMA), growth * growth
    while high > low * (1 + _SIGMA_STEP):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _first_fitting(sigma: float, fits: Callable[[float], bool]) -> float:
    """`sigma` rounded up to 4 significant digits, and further if that does not fit."""
    exponent = math.floor(math.log10(sigma)) - 3
    digits = math.ceil(sigma / 10.0**exponent)
    while not fits(float(f"{digits}e{exponent}")):
        digits += 1
    return float(f"{digits}e{exponent}")


def _check_delta(delta: float) -> None:
    if not MIN_DELTA <= delta < 1.0:
        raise InvalidRequest(
            f"delta must be at least {MIN_DELTA:g} and below 1 in a domain with dealt runs, got {delta!r}",
            field="delta",
        )


@lru_cache(maxsize=4096)
def _max_steps(max_epsilon: float, mechanism: DealtGaussian, delta: float, others: Spent) -> int:
    def fits(steps: int) -> bool:
        spent = others.plus(mechanism, steps)
        total = _total(spent)
        return total is not None and float(total.get_delta_for_epsilon(max_epsilon)) <= _reduced(delta, spent)

    low, high, most = 0, 1, MAX_STEPS - dict(others.dealt).get(mechanism, 0)
    while high <= most and fits(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    # The last digits of the two ways to ask, for delta and for epsilon, may differ.
    while low and total_epsilon(others.plus(mechanism, low), delta) > max_epsilon:
        low -= 1
    return low


@lru_cache(maxsize=65536)
def _total_epsilon(spent: Spent, delta: float) -> float:
    total, reduced = _total(spent), _reduced(delta, spent)
    if total is None or reduced <= 0.0:
        return math.inf
    found = max(0.0, float(total.get_epsilon_for_delta(reduced)))
    return found if found <= HOPELESS_EPSILON else math.inf


def _reduced(delta: float, spent: Spent) -> float:
    steps = sum(count for _, count in spent.dealt)
    return delta * (1.0 - _DELTA_MARGIN) - _ROUNDING_PER_STEP * steps


def _grid(spent: Spent) -> float:
    """The spacing for a composition, from the mean variance of its steps' losses."""
    steps = sum(count for _, count in spent.dealt)
    variance = spent.gaussian_mu_squared + math.fsum(count * _variance(m) for m, count in spent.dealt)
    widest = _GRID_SHARE * math.sqrt(variance / steps)
    halvings = max(0, math.ceil(math.log2(GRID / widest)))
    return math.ldexp(GRID, -min(halvings, _MAX_HALVINGS))


def _variance(mechanism: DealtGaussian) -> float:
    return mechanism.sampling_probability**2 * math.expm1(1.0 / mechanism.noise_multiplier**2)


# A distribution is dp-accounting's PrivacyLossDistribution, which has no types; None is one whose
# epsilon passes HOPELESS_EPSILON at MIN_DELTA.


def _total(spent: Spent) -> Any:  # noqa: ANN401
    """The loss distribution of everything in `spent`, which holds at least one dealt step."""
    grid = _grid(spent)
    # Sorted, so that the same releases give the same number to the last digit.
    dealt = sorted(((mechanism, steps) for mechanism, steps in spent.dealt if steps), key=repr)
    parts = [_composed(mechanism, steps, grid) for mechanism, steps in dealt]
    if spent.gaussian_mu_squared:
        parts.append(_gaussian(spent.gaussian_mu_squared, grid))
    total = parts[0]
    for part in parts[1:]:
        if total is None or part is None:
            return None
        total = total.compose(part)
        if _is_hopeless(total):
            return None
    return total


@_CACHE.remembering
def _gaussian(mu_2: float, grid: float) -> Any:  # noqa: ANN401
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415 - see accountant.py

    deviation = 1.0 / math.sqrt(mu_2)
    if gaussian_epsilon({"": (deviation, 1)}, MIN_DELTA) > HOPELESS_EPSILON:
        return None
    return privacy_loss_distribution.from_gaussian_mechanism(deviation, value_discretization_interval=grid)


def _is_hopeless(distribution: Any) -> bool:  # noqa: ANN401
    return float(distribution.get_delta_for_epsilon(HOPELESS_EPSILON)) > MIN_DELTA


@_CACHE.remembering
def _one_step(mechanism: DealtGaussian, grid: float) -> Any:  # noqa: ANN401
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415

    units, q = mechanism.units, mechanism.sampling_probability
    if _cut_bound(units - 1, q, mechanism.batch_cap) < _NEVER:
        return privacy_loss_distribution.from_gaussian_mechanism(
            mechanism.noise_multiplier, sampling_prob=q, value_discretization_interval=grid
        )
    return privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
        dataset_size=units,
        sampling_probability=q,
        truncated_batch_size=mechanism.batch_cap,
        noise_multiplier=mechanism.noise_multiplier,
        value_discretization_interval=grid,
    )


def _cut_bound(others: int, q: float, cap: int) -> float:
    """At least the probability that `cap` or more of so many other units are drawn (Chernoff)."""
    if cap > others:
        return 0.0
    share = cap / others
    if share <= q:
        return 1.0
    rest = (1.0 - share) * math.log((1.0 - share) / (1.0 - q)) if share < 1.0 else 0.0
    return math.exp(-others * (share * math.log(share / q) + rest))


@_CACHE.remembering
def _composed(mechanism: DealtGaussian, steps: int, grid: float) -> Any:  # noqa: ANN401
    # More than it costs, and exact: no sampling, and the unit moves the sum by 2C. If even that is
    # moderate, so is the distribution's size; else feel the way up, by hops that are remembered.
    if gaussian_epsilon({"": (mechanism.noise_multiplier / 2, steps)}, MIN_DELTA) > HOPELESS_EPSILON:
        hop = 1
        while hop < steps:
            if _hop_is_hopeless(mechanism, hop, grid):
                return None
            hop *= _HOP
    composed = _one_step(mechanism, grid).self_compose(steps)
    return None if _is_hopeless(composed) else composed


@lru_cache(maxsize=1024)
def _hop_is_hopeless(mechanism: DealtGaussian, steps: int, grid: float) -> bool:
    return _is_hopeless(_one_step(mechanism, grid).self_compose(steps))
