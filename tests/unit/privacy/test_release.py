"""The release needs a charge, adds the step's noise once, and divides by the public constant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tensafe.contracts.errors import BudgetExceeded, Conflict, InvalidRequest
from tensafe.privacy import release
from tensafe.privacy.ledger import Ledger
from tensafe.privacy.noise import gaussian
from tensafe.privacy.release import noisy_mean
from tests.fakes import MemoryItems
from tests.unit.privacy.support import new_ledger, new_vault, open_run, secret_of


@pytest.fixture
def ledger() -> Ledger:
    items = MemoryItems()
    return new_ledger(items, new_vault(items))


def test_the_release_is_sum_plus_noise_over_the_public_batch_size(ledger: Ledger) -> None:
    run = open_run(ledger, clip_norm=0.5, noise_multiplier=3.0, batch_size=16)
    charge = ledger.reserve(run, 4, {1})
    total = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    released = noisy_mean(charge, secret_of("run-1"), total)
    expected = (total.astype(np.float64) + gaussian(secret_of("run-1"), 4, 5000, 1.5)) / 16
    assert released == pytest.approx(expected, abs=1e-9)
    noise = released * 16 - total
    assert noise.std() == pytest.approx(1.5, rel=0.05)


def test_a_retry_releases_the_same_bits(ledger: Ledger) -> None:
    run = open_run(ledger)
    total = np.linspace(-1, 1, 1001)
    first = noisy_mean(ledger.reserve(run, 0, {1}), secret_of("run-1"), total)
    again = noisy_mean(ledger.reserve(run, 0, {1}), secret_of("run-1"), total)
    assert first.tobytes() == again.tobytes()
    other = noisy_mean(ledger.reserve(run, 1, {1}), secret_of("run-1"), total)
    assert (first != other).all()


def test_parts_equal_the_whole(ledger: Ledger) -> None:
    charge = ledger.reserve(open_run(ledger), 0, {1})
    total = np.linspace(-1, 1, 1001)
    parts = [
        noisy_mean(charge, secret_of("run-1"), total[at : at + 77], offset=at) for at in range(0, 1001, 77)
    ]
    assert np.concatenate(parts).tobytes() == noisy_mean(charge, secret_of("run-1"), total).tobytes()


def test_another_runs_secret_is_refused(ledger: Ledger) -> None:
    charge = ledger.reserve(open_run(ledger), 0, {1})
    with pytest.raises(Conflict, match="not the noise secret"):
        noisy_mean(charge, secret_of("run-2"), [0.0])
    with pytest.raises(InvalidRequest, match="not finite"):
        noisy_mean(charge, secret_of("run-1"), [float("nan")])
    with pytest.raises(InvalidRequest):
        noisy_mean(replace(charge, standard_deviation=0.0), secret_of("run-1"), [0.0])


def test_a_refused_step_draws_no_noise(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    real = release.gaussian

    def watched(key: bytes, step: int, *rest: int, **options: int) -> np.ndarray:
        drawn.append(step)
        return real(key, step, *rest, **options)

    monkeypatch.setattr(release, "gaussian", watched)
    run = open_run(ledger, max_participations=2, max_epsilon=5.0)
    for step, allowed in ((0, True), (1, False)):
        try:
            noisy_mean(ledger.reserve(run, step, {1}), secret_of("run-1"), [0.0])
        except BudgetExceeded:
            assert not allowed
    assert drawn == [0]
