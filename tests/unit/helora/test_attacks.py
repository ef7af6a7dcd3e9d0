"""Attacks on real replies: they fail on the build that serves, and succeed where one defence is missing."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest

from tensafe_gpu.helora.evaluation import BlockEvaluation
from tensafe_gpu.helora.keystream import floods, new_key, ring_rows
from tensafe_gpu.helora.masks import PreparedBlock, PreparingBlock
from tensafe_gpu.helora.online import answered, masked, unmasked
from tensafe_gpu.helora.parameters import FLOOD, PRIMES, N, T
from tensafe_gpu.helora.quantise import quantised_rows
from tests.support.helora_attacks import Secret, expanded, noise, solve_c1

D, ROWS = 64, 160
"""160 rows of 64 weights: 10,240 of them."""


class WithoutFlood(BlockEvaluation):
    """Re-randomised only."""

    def _flood(self) -> np.ndarray:
        return np.zeros(N, dtype=np.int64)


class WithoutZero(BlockEvaluation):
    """Flooded only."""

    def _zero(self) -> np.ndarray:
        return np.zeros((2, len(PRIMES), N), dtype=np.uint32)


class WithSmallFlood(BlockEvaluation):
    """Covers the noise of honest ciphertexts, not all of the gap."""

    def _flood(self) -> np.ndarray:
        return floods(N, 1 << 58)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Everything the key holder has, and the weights that it wants."""

    a: np.ndarray
    secret: Secret
    rho: np.ndarray
    sent: np.ndarray
    reply: np.ndarray
    prepared: PreparedBlock
    share_key: bytes


def exchange(build: type[BlockEvaluation], d: int, rows: int) -> Exchange:
    """One block of a key holder that follows the protocol."""
    rng = np.random.default_rng(7)
    a = quantised_rows(rng.standard_normal((rows, d))).a
    block, share_key = PreparingBlock(d, rows), new_key()
    evaluation = build(a, block.public_key())
    words, seeds = block.encrypted(0, d)
    evaluation.add(words, seeds)
    reply = evaluation.reply(share_key)
    prepared = block.finish(reply)
    return Exchange(a, Secret(block), block._rho.copy(), expanded(words, seeds), reply, prepared, share_key)


@functools.cache
def served(build: type[BlockEvaluation], rows: int = 8) -> Exchange:
    return exchange(build, D, rows)


def test_weights_cannot_be_solved_from_the_second_polynomial() -> None:
    got = served(BlockEvaluation, ROWS)
    weights = solve_c1(got.sent[:, 1, 0], got.reply[:, 1, 0])
    assert weights.size > 10_000
    assert int((weights == got.a).sum()) == 0


def test_without_re_randomisation_they_are_solved() -> None:
    got = served(WithoutZero)
    assert np.array_equal(solve_c1(got.sent[:, 1, 0], got.reply[:, 1, 0]), got.a)


def noise_regression(got: Exchange) -> np.ndarray:
    """Least squares of the replies' noise on the noise that was sent: an estimate of A, float64 [rows, d]."""
    sent = np.stack([noise(c, got.secret, m) for c, m in zip(got.sent, got.rho, strict=True)])
    shares = got.prepared.shares.T
    replied = np.stack([noise(c, got.secret, m) for c, m in zip(got.reply, shares, strict=True)])
    return np.linalg.lstsq(sent.T, replied.T, rcond=None)[0].T


def correlation(estimate: np.ndarray, a: np.ndarray) -> float:
    return float(np.corrcoef(estimate.ravel(), a.ravel())[0, 1])


def test_noise_tells_nothing_of_the_weights() -> None:
    got = served(BlockEvaluation, ROWS)
    assert abs(correlation(noise_regression(got), got.a)) <= 0.05


def test_without_a_flood_noise_tells_the_weights() -> None:
    got = served(WithoutFlood)
    estimate = noise_regression(got)
    assert correlation(estimate, got.a) > 0.999
    assert np.abs(np.rint(estimate) - got.a).mean() < 0.2 * np.abs(got.a).mean()


def test_decryption_is_exact_at_both_ends_of_the_flood() -> None:
    for end in (-FLOOD, FLOOD - 1):

        class AtTheEnd(BlockEvaluation):
            def _flood(self, end: int = end) -> np.ndarray:
                return np.full(N, end, dtype=np.int64)

        got = served(AtTheEnd)
        shares = ring_rows(got.share_key, 0, N, len(got.a)).astype(np.int64)
        wanted = (got.a.astype(np.int64) @ got.rho.astype(np.int64)).T - shares
        assert np.array_equal(got.prepared.shares, (wanted & (T - 1)).astype(np.uint32))


def deviating(build: type[BlockEvaluation], unit: int = 1 << 51) -> tuple[np.ndarray, np.ndarray]:
    """A key holder adds `unit` to single coefficients of c0; its estimate of A, and A.

    What is below the gap's unit Q/t is in no share: only the flood hides it.
    """
    rng = np.random.default_rng(3)
    d = rows = 16
    a = quantised_rows(rng.standard_normal((rows, d))).a
    block = PreparingBlock(d, rows)
    evaluation = build(a, block.public_key())
    words, seeds = block.encrypted(0, d)
    for level, prime in enumerate(PRIMES):
        for feature in range(d):
            # Every d-th coefficient carries the same feature: 256 looks at each weight.
            some = words[feature, level, feature::d].astype(np.int64)
            words[feature, level, feature::d] = (some + unit) % prime
    evaluation.add(words, seeds)
    reply = evaluation.reply(new_key())
    secret = Secret(block)
    shares = block.finish(reply).shares.T
    left = np.stack([noise(c, secret, m) for c, m in zip(reply, shares, strict=True)])
    return left.reshape(rows, N // d, d).mean(axis=1) / unit, a


def test_a_key_holder_with_malformed_encryptions_learns_nothing_from_the_gap() -> None:
    estimate, a = deviating(BlockEvaluation)
    assert abs(correlation(estimate, a)) < 0.3


def test_a_flood_that_covers_honest_noise_alone_tells_it_the_weights() -> None:
    estimate, a = deviating(WithSmallFlood)
    assert correlation(estimate, a) > 0.8


def test_an_answer_divided_by_x_is_no_row_of_a() -> None:
    """Replies with products in separate slots give a_ij x_j; here every answer is a whole sum, masked."""
    got = served(BlockEvaluation)
    x_q = np.arange(1, D + 1, dtype=np.int32)[np.newaxis]
    shares = ring_rows(got.share_key, 0, 1, len(got.a))
    y = answered(got.a.T.astype(np.float64), masked(x_q, got.prepared.rho(0, 1, D)), shares)
    quotients = y[0][:, np.newaxis] / x_q
    assert int((np.rint(quotients) == got.a).sum()) <= 1
    assert np.array_equal(unmasked(y, got.prepared, 0), x_q.astype(np.int64) @ got.a.T.astype(np.int64))


def test_a_mask_used_twice_gives_the_difference_of_two_tokens() -> None:
    """Why indices are burned: what the adapter holder sees is uniform once, and not twice."""
    got = served(BlockEvaluation)
    first, second = (np.random.default_rng(i).integers(-99, 99, (1, D)).astype(np.int32) for i in (1, 2))
    rho, other = got.prepared.rho(5, 1, D), got.prepared.rho(6, 1, D)

    def difference(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return ((one.astype(np.int64) - two + T // 2) % T) - T // 2

    assert np.array_equal(difference(masked(first, rho), masked(second, rho)), first - second)
    assert np.abs(difference(masked(first, rho), masked(second, other))).mean() > T / 8


def test_what_is_sent_is_uniform_whatever_the_token() -> None:
    got = served(BlockEvaluation)
    x_q = np.full((N, D), 1000, dtype=np.int32)
    z = masked(x_q, got.prepared.rho(0, N, D))
    counts = np.bincount((z >> 24).ravel(), minlength=16)
    expected = z.size / 16
    assert float(((counts - expected) ** 2 / expected).sum()) < 60  # chi-square, 15 degrees: p about 2e-7


@pytest.mark.parametrize("index", [0, 17])
def test_an_index_answered_twice_would_cancel_its_share(index: int) -> None:
    """Why the adapter holder accepts each index once: two answers with one s give A times a chosen vector."""
    got = served(BlockEvaluation)
    columns = got.a.T.astype(np.float64)
    shares = ring_rows(got.share_key, index, 1, len(got.a))
    zero, unit = np.zeros((1, D), dtype=np.uint32), np.eye(1, D, dtype=np.uint32)
    difference = answered(columns, unit, shares).astype(np.int64) - answered(columns, zero, shares)
    assert np.array_equal(((difference + T // 2) % T - T // 2)[0], got.a[:, 0])
