"""The classic bugs, each put in by replacing a function of the service while a test runs."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch

from tensafe.privacy import accountant, bisr, noise, release, rules
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.mechanism import Mechanism
from tensafe.privacy.noise import Float64Array
from tensafe.privacy.records import RunRef
from tensafe_gpu.trainer.accumulate import ClippedSum
from tensafe_gpu.trainer.layout import Layout, Pair

Plant = Callable[[pytest.MonkeyPatch], None]
_real_clipped_sum = ClippedSum.__init__
_real_add_units = ClippedSum.add_units
_real_open_run = Ledger.open_run


def clip_at(factor: float) -> Plant:
    """Units are clipped to `factor` times the clip norm that the noise and the ledger know."""

    def wrong(self: ClippedSum, layout: Layout, clip_norm: float, device: torch.device) -> None:
        _real_clipped_sum(self, layout, factor * clip_norm, device)

    return lambda patch: patch.setattr(ClippedSum, "__init__", wrong)


def clip_the_batch(patch: pytest.MonkeyPatch) -> None:
    """The sum of a call's units is clipped instead of each unit: as `clip_grad_norm_` on a mean loss."""

    def wrong(self: ClippedSum, examples: Sequence[Pair], unit_of: Sequence[int], units: int) -> None:
        whole = [(a.sum(0, keepdim=True), b.sum(0, keepdim=True)) for a, b in examples]
        _real_add_units(self, whole, [0], 1)

    patch.setattr(ClippedSum, "add_units", wrong)


def noise_times(factor: float) -> Plant:
    """Too little or too much noise, such as that of a mean on a sum (1 / sqrt(batch))."""

    def wrong(*args: Any, **options: Any) -> Float64Array:
        return factor * noise.gaussian(*args, **options)

    return lambda patch: patch.setattr(release, "gaussian", wrong)


def redraw_on_retry(patch: pytest.MonkeyPatch) -> None:
    """Fresh noise at every call, whatever the step: a retry is a second release of the same sum."""
    calls = itertools.count()

    def wrong(key: bytes, *args: Any, **options: Any) -> Float64Array:
        fresh = hashlib.sha256(key + next(calls).to_bytes(8, "big")).digest()
        return noise.gaussian(fresh, *args, **options)

    patch.setattr(release, "gaussian", wrong)


def bill_as_poisson(rate: float, steps: int) -> Plant:
    """Epsilon of `steps` Poisson-sampled steps at `rate`, for batches that the client chose."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    @lru_cache
    def poisson(sigma: float, delta: float) -> float:
        accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), steps)
        return float(accountant.get_epsilon(delta))

    def wrong(runs: Mapping[str, tuple[float, int]], delta: float) -> float:
        (sigma, _), *_ = runs.values()
        return poisson(sigma, delta)

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(rules, "epsilon", wrong)
        patch.setattr(accountant, "epsilon", wrong)

    return plant


def bill_as_independent(patch: pytest.MonkeyPatch) -> None:
    """Correlated noise, with the sensitivity of independent noise."""

    def wrong(_: int, *, participations: int, **__: int) -> float:
        return math.sqrt(participations)

    patch.setattr(bisr, "sensitivity", wrong)


def ledger_of_its_own(patch: pytest.MonkeyPatch) -> None:
    """Every run, forks included, begins a new account of the same data."""

    def wrong(self: Ledger, tenant: str, run_id: str, mechanism: Mechanism, **options: Any) -> RunRef:
        own = hashlib.sha256(run_id.encode()).hexdigest()[:8]
        alone = replace(mechanism, domain=f"{mechanism.domain}-{own}")
        return _real_open_run(self, tenant, run_id, alone, **options)

    patch.setattr(Ledger, "open_run", wrong)
