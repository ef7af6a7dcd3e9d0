"""Canaries in a run whose deals the service draws: its claim holds against whoever does not see the deals.

The real registration, ledger, dealing, clipping and release. Every unit is a canary on a coordinate of its
own, and a coin decides whether its data are there or zero (the domain's neighbouring relation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tensafe.contracts.domains import DomainTerms
from tensafe.contracts.training import DpAdamWConfig
from tensafe.privacy import dealing
from tensafe.privacy.dealt_ledger import DealtLedger
from tensafe.privacy.domains import Domains
from tensafe.privacy.noise import noise_key_id
from tensafe.privacy.records import RunRef
from tensafe.privacy.release import noisy_mean
from tensafe.vault.vault import Vault
from tests.fakes import MemoryAnchors, MemoryBlobs, MemoryItems, MemoryKeyRing, memory_signer
from tests.support.privacy_audit.dirac import CLIP_NORM, _clipped_sum
from tests.support.privacy_audit.one_run import epsilon_lower_bound

UNITS, STEPS, Q, SIGMA, DELTA = 4000, 100, 0.02, 0.9, 1e-5
GUESSES = 60
"""Fixed before any score was seen: a deal holds 80 units."""
CONFIG = DpAdamWConfig(
    type="tensafe_dp_adamw",
    mode="dealt",
    clip_norm=CLIP_NORM,
    noise_multiplier=SIGMA,
    delta=DELTA,
    batch_size=round(Q * UNITS),
    max_steps=STEPS,
    domain="audited",
)
Draw = Callable[[bytes, int, dealing.DealTerms], dealing.Deal]


@dataclass(frozen=True)
class Dealt:
    """The claim; releases over the clip norm and who was dealt, [steps, units]; who had data, [units]."""

    claimed_epsilon: float
    released: npt.NDArray[np.float64]
    dealt: npt.NDArray[np.bool_]
    included: npt.NDArray[np.bool_]

    def bound(self, scores: npt.NDArray[np.float64]) -> float:
        return epsilon_lower_bound(scores, self.included, DELTA, guesses=GUESSES)

    def blind(self) -> npt.NDArray[np.float64]:
        """The likelihood ratio of having had data, for who does not know when: the best there is."""
        gain = np.exp((2 * self.released - 1) / (2 * SIGMA**2))
        return np.asarray(np.log1p(Q * (gain - 1)).sum(axis=0))

    def seeing(self) -> npt.NDArray[np.float64]:
        """The same for who knows the deals."""
        return np.asarray(((self.released - 0.5) * self.dealt).sum(axis=0))


def run(seed: int, draw: Draw) -> Dealt:
    rng = np.random.default_rng(seed)
    included = rng.random(UNITS) < 0.5
    items = MemoryItems()
    vault = Vault(items, MemoryBlobs(), MemoryKeyRing())
    domains = Domains(items, vault)
    domains.create("acme", "audited", DomainTerms(unit="record", delta=DELTA, max_epsilon=9.0))
    entries = b"".join(unit.to_bytes(8, "big") + bytes(32) for unit in range(UNITS))
    domains.add_units("acme", "audited", 0, entries)
    domains.finish("acme", "audited")
    ledger = DealtLedger(items, vault, memory_signer(), MemoryAnchors())
    secret, deal_seed = rng.bytes(32), rng.bytes(32)
    ref = RunRef("acme", "audited", "run-1")
    record = ledger.open_run(ref, CONFIG, noise_key_id=noise_key_id(secret), deal_seed=deal_seed)
    terms = record.mechanism.deal_terms("run-1")
    released, dealt = np.zeros((STEPS, UNITS)), np.zeros((STEPS, UNITS), dtype=bool)
    nobody = np.zeros((0, UNITS), dtype=np.float32)
    for step in range(STEPS):
        charge = ledger.deal(ref, step).charge
        indices = draw(deal_seed, step, terms).indices
        dealt[step, indices] = True
        total = _clipped_sum(UNITS, indices[included[indices]], nobody)
        released[step] = noisy_mean(charge, secret, total) * (charge.batch_size / CLIP_NORM)
        items.write(ledger.completion(ref, step))
    return Dealt(ledger.epsilon(ref), released, dealt, included)


@pytest.fixture(scope="module", params=[1, 2])
def real(request: pytest.FixtureRequest) -> Dealt:
    return run(request.param, dealing.deal)


def test_who_does_not_see_the_deals_is_within_the_claim(real: Dealt) -> None:
    assert 0.9 < real.claimed_epsilon < 3.0
    assert real.bound(real.blind()) <= real.claimed_epsilon
    count = real.dealt.sum()
    expected, deviation = Q * UNITS * STEPS, np.sqrt(Q * (1 - Q) * UNITS * STEPS)
    assert abs(count - expected) < 4 * deviation


def test_who_sees_the_deals_is_not(real: Dealt) -> None:
    """What docs/privacy.md says: against them amplification does not hold. So the audit can fail."""
    assert real.bound(real.seeing()) > real.claimed_epsilon


def test_deals_that_repeat_are_caught() -> None:
    """A planted bug: the step has no part in the draw, so the same units are in every batch."""

    def repeating(seed: bytes, step: int, terms: Any) -> dealing.Deal:
        return dealing.deal(seed, 0, terms)

    broken = run(3, repeating)
    assert broken.bound(broken.seeing()) > broken.claimed_epsilon
