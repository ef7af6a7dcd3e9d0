"""Deals follow the law that is accounted for, exactly, and are a function of seed and step.

Every seed is fixed, so each statistic has one value: a test fails for a changed law, not by chance.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.privacy import dealing, noise
from tensafe.privacy.dealing import (
    DealTerms,
    deal,
    exact_probability,
    new_deal_seed,
    seed_commitment,
    verify_opening,
)
from tests.unit.privacy.dealt import SEED, deal_terms

UNITS, Q, STEPS = 2000, 0.05, 400
FREE = deal_terms(UNITS, Q, UNITS)


@pytest.fixture(scope="module")
def included() -> np.ndarray:
    """bool [STEPS, UNITS]: who is in which deal, without a cap."""
    table = np.zeros((STEPS, UNITS), dtype=bool)
    for step in range(STEPS):
        table[step, deal(SEED, step, FREE).indices] = True
    return table


def _p_of_counts(counts: np.ndarray, trials: int, q: float) -> float:
    """Chi-square of counts that should each be Binomial(trials, q)."""
    edges = stats.binom.ppf(np.linspace(0.05, 0.95, 10), trials, q)
    cells = np.searchsorted(edges, counts)
    cumulative = np.concatenate(([0.0], stats.binom.cdf(edges, trials, q), [1.0]))
    return float(stats.chisquare(np.bincount(cells, minlength=11), np.diff(cumulative) * counts.size).pvalue)


def _p_of_pairs(first: np.ndarray, second: np.ndarray, q: float) -> float:
    """How likely so many joint inclusions are if the two tables are independent."""
    return float(stats.binomtest(int((first & second).sum()), first.size, q * q).pvalue)


def test_inclusions_are_bernoulli_by_unit_by_step_and_in_all(included: np.ndarray) -> None:
    assert stats.binomtest(int(included.sum()), included.size, Q).pvalue > 1e-3
    assert _p_of_counts(included.sum(axis=0), STEPS, Q) > 1e-3
    assert _p_of_counts(included.sum(axis=1), UNITS, Q) > 1e-3


def test_steps_and_units_are_independent(included: np.ndarray) -> None:
    for lag in (1, 2, 7):
        assert _p_of_pairs(included[:-lag], included[lag:], Q) > 1e-3
        assert _p_of_pairs(included[:, :-lag], included[:, lag:], Q) > 1e-3
    other = np.zeros_like(included)
    for step in range(STEPS):
        other[step, deal(bytes(32), step, FREE).indices] = True
    assert _p_of_pairs(included, other, Q) > 1e-3


def test_the_statistics_can_fail(included: np.ndarray) -> None:
    """Planted bugs: a fixed batch size, a shuffled epoch, one deal for ever, a q that is 3 % off."""
    random = np.random.default_rng(1)
    fixed = np.array([random.permutation(UNITS) < UNITS * Q for _ in range(STEPS)])
    assert _p_of_counts(fixed.sum(axis=1), UNITS, Q) < 1e-6
    epochs = np.concatenate([random.permutation(UNITS) for _ in range(int(STEPS * Q))]).reshape(STEPS, -1)
    shuffled = np.zeros_like(included)
    np.put_along_axis(shuffled, epochs, True, axis=1)
    assert _p_of_counts(shuffled.sum(axis=0), STEPS, Q) < 1e-6
    assert _p_of_pairs(included[:-1], included[:-1], Q) < 1e-6
    assert stats.binomtest(int(included.sum()), included.size, Q * 1.03).pvalue < 1e-6


def test_a_unit_is_drawn_when_its_64_bits_lie_below_the_threshold() -> None:
    """The whole construction once more, from its description."""
    threshold = math.floor(Fraction(Q) * 2**64)
    for step in range(50):
        info = b"tensafe/privacy/deal-draw/v1" + step.to_bytes(8, "big")
        key = HKDF(hashes.SHA256(), 32, None, info).derive(SEED)
        stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        words = np.frombuffer(stream.update(bytes(8 * UNITS)), dtype="<u8").tolist()
        assert deal(SEED, step, FREE).indices.tolist() == [
            i for i, word in enumerate(words) if word < threshold
        ]


def test_the_first_units_of_a_large_manifest_are_those_of_a_small_one() -> None:
    """The stream is read in pieces; where they meet nothing is skipped or read twice."""
    units = 3 * dealing._WORDS_PER_CHUNK + 5
    whole = deal(SEED, 1, deal_terms(units, 0.01, 25_000)).indices
    for size in (dealing._WORDS_PER_CHUNK, dealing._WORDS_PER_CHUNK + 1, 2 * dealing._WORDS_PER_CHUNK - 1):
        part = deal(SEED, 1, deal_terms(size, 0.01, 25_000)).indices
        assert part.tolist() == whole[whole < size].tolist()
    assert whole.max() > 3 * dealing._WORDS_PER_CHUNK - 500


@given(st.floats(2.0**-64, 1.0))
def test_the_probability_that_is_accounted_for_is_the_drawn_one(q: float) -> None:
    exact = Fraction(exact_probability(q))
    assert exact * 2**64 == dealing._threshold(q)
    assert 0 <= Fraction(q) - exact < Fraction(1, 2**64)
    assert q < 2**-12 or exact == Fraction(q)
    assert exact_probability(float(exact)) == float(exact)


def test_every_unit_is_drawn_at_probability_one() -> None:
    everybody = deal(SEED, 0, deal_terms(7, 1.0, 7))
    assert (everybody.indices.tolist(), everybody.drawn) == (list(range(7)), 7)


def test_below_the_cap_nothing_is_cut_and_above_it_the_rest_stays_away() -> None:
    cut = 0
    for step in range(200):
        free, capped = deal(SEED, step, FREE), deal(SEED, step, replace(FREE, batch_cap=100))
        assert capped.drawn == free.drawn == free.indices.size
        assert capped.indices.size == min(free.drawn, 100)
        assert set(capped.indices.tolist()) <= set(free.indices.tolist())
        assert (np.diff(capped.indices) > 0).all()
        cut += free.drawn > 100
    assert 60 < cut < 140


@pytest.mark.parametrize(("size", "cap"), [(5, 2), (5, 3), (6, 1), (6, 5)])
def test_every_subset_stays_equally_often(size: int, cap: int) -> None:
    """q = 1 draws all, so the cap alone decides. Both ways, by those that stay and by those that go."""
    capped = deal_terms(size, 1.0, cap)
    trials = 200 * math.comb(size, cap)
    seen = Counter(tuple(deal(SEED, step, capped).indices.tolist()) for step in range(trials))
    assert sorted(seen) == list(itertools.combinations(range(size), cap))
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_the_subset_does_not_depend_on_the_place_in_the_manifest() -> None:
    """Keeping the first `cap` drawn, say, would favour small ids."""
    capped = deal_terms(500, 0.5, 100)
    counts = np.zeros(500)
    for step in range(400):
        counts[deal(SEED, step, capped).indices] += 1
    assert stats.binomtest(int(counts[:250].sum()), int(counts.sum()), 0.5).pvalue > 1e-3


def test_integers_are_drawn_without_the_bias_of_a_remainder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words that would make small remainders likelier are passed over."""

    class Script:
        def __init__(self, words: list[int]) -> None:
            self.words = words

        def take(self, count: int) -> np.ndarray:
            taken, self.words = self.words[:count], self.words[count:]
            return np.array(taken, dtype=np.uint64)

    limit = 2**64 - 2**64 % 3
    assert dealing._uniform_below(Script([limit, 2**64 - 1, limit - 1, 5]), 3, 2) == [2, 2]  # type: ignore[arg-type]


def test_the_same_seed_and_step_give_the_same_deal_and_another_gives_another() -> None:
    capped = replace(FREE, batch_cap=90)
    first = deal(SEED, 5, capped)
    assert deal(SEED, 5, capped).indices.tobytes() == first.indices.tobytes()
    assert deal(SEED, 6, capped).indices.tobytes() != first.indices.tobytes()
    assert deal(bytes(32), 5, capped).indices.tobytes() != first.indices.tobytes()


def test_known_deals_do_not_change_between_versions() -> None:
    """A change here would deal other units after a crash: never allow it."""
    assert deal(SEED, 3, deal_terms(40, 0.2, 40)).indices.tolist() == GOLDEN
    assert deal(SEED, 3, deal_terms(40, 0.2, 3)).indices.tolist() == GOLDEN_CAPPED


GOLDEN = [5, 6, 8, 26, 28, 38]
GOLDEN_CAPPED = [5, 6, 26]


def test_a_commitment_opens_with_its_seed_and_terms_alone() -> None:
    seed = new_deal_seed()
    assert len({seed, new_deal_seed()}) == 2
    commitment = seed_commitment(seed, FREE)
    verify_opening(commitment, seed, FREE)
    others = [
        replace(FREE, run_id="run-2"),
        replace(FREE, manifest_digest="1" * 64),
        replace(FREE, units=UNITS + 1),
        replace(FREE, sampling_probability=0.25),
        replace(FREE, batch_cap=7),
    ]
    for terms in others:
        with pytest.raises(IntegrityError):
            verify_opening(commitment, seed, terms)
    for wrong in (SEED, seed[:31], seed + b"\0"):
        with pytest.raises(IntegrityError):
            verify_opening(commitment, wrong, FREE)


def test_draws_subsets_and_noise_have_streams_of_their_own() -> None:
    """Even where one secret is used for all of them by mistake."""
    labels = {dealing._DRAW_LABEL, dealing._SUBSET_LABEL, dealing._COMMIT_LABEL, noise._STEP_LABEL}
    assert len(labels) == 4
    assert not any(one != other and one.startswith(other) for one in labels for other in labels)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"units": 0}, "units"),
        ({"units": 10**9}, "units"),
        ({"sampling_probability": 0.0}, "sampling_probability"),
        ({"sampling_probability": 1.5}, "sampling_probability"),
        ({"sampling_probability": math.nan}, "sampling_probability"),
        ({"sampling_probability": 2.0**-40 / 3}, "sampling_probability"),
        ({"batch_cap": 0}, "batch_cap"),
        ({"batch_cap": 25_001}, "batch_cap"),
    ],
)
def test_terms_that_no_deal_can_follow_are_refused_by_name(changed: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        DealTerms(**{"run_id": "r", "manifest_digest": "", "units": 5, "batch_cap": 5,
                     "sampling_probability": 0.5, **changed})  # fmt: skip # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_step_or_seed_out_of_range_is_refused() -> None:
    for seed, step in ((SEED, -1), (SEED, 2**63), (b"short", 0)):
        with pytest.raises(InvalidRequest):
            deal(seed, step, FREE)
