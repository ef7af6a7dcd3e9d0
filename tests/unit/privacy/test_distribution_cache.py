"""Loss distributions are remembered up to a number of bytes, however many or large they are."""

from __future__ import annotations

from typing import Any

import pytest
from dp_accounting.pld import privacy_loss_distribution

from tensafe.privacy import amplified
from tensafe.privacy.distribution_cache import DistributionCache, distribution_bytes


def gaussian(sigma: float, grid: float) -> Any:
    return privacy_loss_distribution.from_gaussian_mechanism(sigma, value_discretization_interval=grid)


def test_what_was_used_last_is_kept_and_the_bytes_are_bounded() -> None:
    calls: list[float] = []
    size = distribution_bytes(gaussian(1.0, 1e-2))
    cache = DistributionCache(int(2.5 * size))

    @cache.remembering
    def distribution(sigma: float, grid: float) -> Any:
        calls.append(sigma)
        return gaussian(sigma, grid)

    first = distribution(1.0, 1e-2)
    assert distribution(1.0, 1e-2) is first
    distribution(1.001, 1e-2)
    distribution(1.0, 1e-2)
    distribution(1.002, 1e-2)
    assert calls == [1.0, 1.001, 1.002]
    assert distribution(1.0, 1e-2) is first
    distribution(1.001, 1e-2)
    assert calls == [1.0, 1.001, 1.002, 1.001]
    assert 0 < cache.size_bytes <= 2.5 * size


def test_one_that_is_too_large_is_returned_and_not_kept() -> None:
    cache = DistributionCache(100)
    assert cache.remembering(gaussian)(1.0, 1e-2) is not None
    assert cache.size_bytes == 0


def test_functions_share_the_bytes_and_not_their_results() -> None:
    cache = DistributionCache()
    one, other = cache.remembering(lambda _: gaussian(1.0, 1e-2)), cache.remembering(lambda _: None)
    assert one(1) is not None
    assert other(1) is None


def test_the_accountant_keeps_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for a sigma makes dozens of distributions."""
    cache = amplified._CACHE
    cache.clear()
    monkeypatch.setattr(cache, "_kept_bytes", 1_000_000)
    made = 0
    for step in range(12):
        mechanism = amplified.DealtGaussian(10_000, 0.0256, 350, 1.0 + step / 100)
        amplified.epsilon(mechanism, 120, 1e-5)
        made += distribution_bytes(amplified._composed(mechanism, 120, amplified.GRID))
        assert 0 < cache.size_bytes <= 1_000_000
    assert made > 2_000_000
    cache.clear()
