"""The protocol's products equal the integers' own, for the ranks and widths that are served."""

from __future__ import annotations

import numpy as np
import pytest

from tensafe_gpu.helora.evaluation import BlockEvaluation, answered
from tensafe_gpu.helora.keystream import new_key, ring_rows
from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.online import masked, token_scales, unmasked
from tensafe_gpu.helora.parameters import MAX_L1, N, T
from tensafe_gpu.helora.quantise import A_BITS, CREST, dequantised, quantised_rows, quantised_tokens
from tensafe_gpu.helora.residues import centred_mod_t
from tests.support.helora import halves_of

SHAPES = [*((d, rank) for d in (512, 1024, 2048, 4096) for rank in (8, 16, 32)), (896, 48), (1536, 16)]
"""A block of 4,096 tokens each: 12,288 of every one of the four widths, 16,384 of every rank."""


@pytest.mark.parametrize(("d", "rows"), SHAPES)
def test_every_product_of_a_block_is_exact(d: int, rows: int) -> None:
    rng = np.random.default_rng(d + rows)
    site = quantised_rows(rng.standard_normal((rows, d)))
    block, share_key = PreparingBlock(d, rows), new_key()
    evaluation = BlockEvaluation(site.a, *halves_of(block))
    for first in range(0, d, 64):
        count = min(64, d - first)
        if first % 128:  # as over TLS, and as on one host
            evaluation.add(*block.encrypted(first, count))
        else:
            evaluation.add_whole(block.encrypted_whole(first, count))
    prepared = block.finish(evaluation.reply(share_key))
    columns = site.a.T.astype(np.float64)
    for first in range(0, N, 512):
        x = rng.standard_normal((512, d)).astype(np.float32) * np.float32(10.0 ** rng.integers(-3, 4))
        x[0] = np.sign(site.a[0])  # the largest sum that the first row can have
        x_q, scales = quantised_tokens(x, site.x_bound)
        assert np.array_equal(token_scales(x, site.x_bound), scales)
        z = masked(x, scales, prepared.rho(first, 512, d))
        y = answered(columns, z, ring_rows(share_key, first, 512, rows))
        shares = prepared.shares[first : first + 512]
        sums = centred_mod_t(y - shares)
        assert np.array_equal(sums.astype(np.float64), x_q.astype(np.float64) @ columns)
        some = slice(0, 4)  # integers all the way; slow in numpy
        assert np.array_equal(sums[some], x_q[some].astype(np.int64) @ site.a.T.astype(np.int64))
        assert int(np.abs(sums).max()) < T // 2
        products = unmasked(y, shares, scales)
        assert np.array_equal(products, dequantised(sums, scales))
        alone = [unmasked(y[n : n + 1], shares[n : n + 1], scales[n : n + 1])[0] for n in (0, 7)]
        assert np.array_equal(alone, products[[0, 7]])


@pytest.mark.parametrize("outliers", [1.0, 1000.0])
def test_no_split_of_bits_lets_a_sum_leave_the_ring(outliers: float) -> None:
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((16, 4096))
    rows[:, 7] *= outliers
    site = quantised_rows(rows)
    worst = np.abs(site.a.astype(np.int64)).sum(axis=1).max()
    assert worst * site.x_bound < T // 2
    assert worst <= MAX_L1


@pytest.mark.parametrize(("d", "bits"), [(896, 10), (4096, 9), (20_000, 8)])
def test_a_site_takes_the_split_of_bits_that_rounds_least(d: int, bits: int) -> None:
    """More bits for A leave fewer for x: which is better hangs on the site, and both are measured here."""
    rows, lost = np.random.default_rng(1).standard_normal((8, d)), {}
    for candidate in A_BITS:
        scale = np.abs(rows).max(axis=1, keepdims=True) / (2 ** (candidate - 1) - 1)
        a = np.rint(rows / scale)
        bound = (T // 2 - 1) // int(np.abs(a).sum(axis=1).max())
        if np.abs(a).sum(axis=1).max() <= MAX_L1:
            of_a = np.linalg.norm(a * scale - rows) / np.linalg.norm(rows)
            step = CREST / bound  # of tokens whose root mean square is 1
            lost[candidate] = (of_a**2 + step**2 / 12) ** 0.5
    site = quantised_rows(rows)
    assert site.bits == bits == min(lost, key=lambda one: lost[one])
    assert (site.error_a**2 + site.error_x**2) ** 0.5 == pytest.approx(lost[bits], rel=1e-6)


def test_a_tokens_integers_depend_on_that_token_alone() -> None:
    x = np.random.default_rng(6).standard_normal((9, 33)).astype(np.float32)
    x[2] *= 1e30
    x[3] = 0
    x_q, scales = quantised_tokens(x, 1000)
    assert scales[3] == 0
    assert not x_q[3].any()
    assert np.abs(x_q).max(axis=1).tolist() == [1000] * 3 + [0] + [1000] * 5
    for n in range(9):
        one, scale = quantised_tokens(x[n : n + 1], 1000)
        assert np.array_equal(one[0], x_q[n])
        assert scale[0] == scales[n]


@pytest.mark.parametrize("x_bound", [1000, (1 << 17) - 1])
def test_activations_are_rounded_in_float64(x_bound: int) -> None:
    """To the nearest multiple of the token's largest magnitude over the bound; in float32 some differ."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((64, 512)) * 10.0 ** rng.integers(-30, 30, (64, 1))).astype(np.float32)
    x[3] = 0
    x_q, scales = quantised_tokens(x, x_bound)
    for token, of_token, scale in zip(x.astype(np.float64), x_q, scales, strict=True):
        largest = max(abs(value) for value in token.tolist())
        assert scale == largest / x_bound
        expected = [round(value / scale) if scale else 0 for value in token.tolist()]
        assert of_token.tolist() == expected
        assert max(map(abs, expected)) <= x_bound


def test_quantising_costs_what_it_reports() -> None:
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((16, 896))
    site = quantised_rows(rows)
    x = rng.standard_normal((200, 896)).astype(np.float32)
    x_q, scales = quantised_tokens(x, site.x_bound)
    got = dequantised(x_q.astype(np.int64) @ site.a.T.astype(np.int64), scales) * site.scales
    wanted = x @ rows.T
    error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    assert 0.5 * site.error_a < error < site.error_a + site.error_x
    assert site.error_a < 0.01
