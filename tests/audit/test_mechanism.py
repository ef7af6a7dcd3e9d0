"""The one-run audit and the test on mu: the real mechanism passes, every planted bug fails a gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from tests.support.privacy_audit import planted
from tests.support.privacy_audit.dirac import Audited, Setting, audit
from tests.support.privacy_audit.estimate import MuEstimate, estimate_mu, mu_of
from tests.support.privacy_audit.one_run import epsilon_lower_bound

GUESSES = 400
"""Fixed before any score was seen: 10 % of the canaries."""
Z_LIMIT = 4.0
POISSON = Setting(steps=300, participations=3, noise_multiplier=1.05)

GATES: dict[str, Callable[[Audited], bool]] = {
    "one-run": lambda run: _bound(run) > run.claimed_epsilon,
    "mu": lambda run: abs(_estimate(run).z_against(_claimed_mu(run))) >= Z_LIMIT,
    "retry": lambda run: run.releases_differ,
}
"""Each says whether the run broke its claim."""


def _bound(run: Audited) -> float:
    return epsilon_lower_bound(run.scores, run.included, run.delta, guesses=GUESSES)


def _estimate(run: Audited) -> MuEstimate:
    return estimate_mu(run.scores, run.included)


def _claimed_mu(run: Audited) -> float:
    return mu_of(run.claimed_epsilon, run.delta)


def _failed(run: Audited) -> set[str]:
    return {gate for gate, broken in GATES.items() if broken(run)}


FULL = Setting(steps=20, participations=20, noise_multiplier=15.5)
CORRELATED = Setting(steps=100, participations=10, noise_multiplier=23.5, bandwidth=16, min_separation=10)
REAL = {
    "correlated noise": CORRELATED,
    "every step": FULL,
    "a client's schedule": Setting(steps=300, participations=3, noise_multiplier=6.46),
    "one epoch": Setting(steps=10, participations=1, noise_multiplier=3.73),
    "retried": Setting(steps=20, participations=20, noise_multiplier=15.5, attempts=10),
    "forks": Setting(steps=8, participations=8, noise_multiplier=31.0, runs=10),
}


@pytest.mark.parametrize("name", sorted(REAL))
@pytest.mark.parametrize("seed", [1, 2])
def test_the_mechanism_keeps_its_claim(name: str, seed: int) -> None:
    run = audit(REAL[name], seed=seed)
    assert 0.95 < run.claimed_epsilon < 1.15
    assert _failed(run) == set()
    assert _bound(run) > 0.1, "an audit that sees nothing would pass anything"


@dataclass(frozen=True)
class Bug:
    plant: planted.Plant
    setting: Setting
    caught_by: set[str]


BUGS = {
    "clipping at 3C": Bug(planted.clip_at(3.0), FULL, {"one-run", "mu"}),
    "batch clipping": Bug(planted.clip_the_batch, FULL, {"mu"}),
    "noise / sqrt(B)": Bug(planted.noise_times(FULL.batch_size**-0.5), FULL, {"one-run", "mu"}),
    "noise x 0.5": Bug(planted.noise_times(0.5), FULL, {"mu"}),
    "noise x 2": Bug(planted.noise_times(2.0), FULL, {"mu"}),
    "a client's schedule billed as Poisson": Bug(
        planted.bill_as_poisson(0.01, POISSON.steps), POISSON, {"one-run", "mu"}
    ),
    "noise redrawn on retry": Bug(planted.redraw_on_retry, REAL["retried"], {"one-run", "mu", "retry"}),
    "correlated noise billed as independent": Bug(
        planted.bill_as_independent, replace(CORRELATED, noise_multiplier=11.0), {"mu"}
    ),
    "a fork with a ledger of its own": Bug(
        planted.ledger_of_its_own,
        Setting(steps=8, participations=8, noise_multiplier=9.8, runs=10),
        {"one-run", "mu"},
    ),
}


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    bug.plant(monkeypatch)
    run = audit(bug.setting, seed=1)
    assert 0.9 < run.claimed_epsilon < 1.15, "audited at a claimed epsilon of about 1"
    assert _failed(run) == bug.caught_by
