"""The direct mode: exact in one round, and its reply holds nothing but the rows' products."""

from __future__ import annotations

import numpy as np
import pytest

from tensafe_gpu.helora import direct
from tensafe_gpu.helora.direct import DIRECT_FLOOD, DirectRequest, DirectSite, layout_of
from tensafe_gpu.helora.parameters import PRIMES, N, Q, T
from tensafe_gpu.helora.ports import HeUnavailable
from tensafe_gpu.helora.quantise import quantised_rows, quantised_tokens
from tests.support.helora import half_of
from tests.support.helora_attacks import Secret


@pytest.mark.parametrize(("d", "rows"), [(64, 16), (896, 16), (896, 48), (1100, 3), (4096, 32)])
def test_one_token_is_exact(d: int, rows: int) -> None:
    rng = np.random.default_rng(d)
    site = quantised_rows(rng.standard_normal((rows, d)))
    served = DirectSite(site.a)
    x = rng.standard_normal((2, d)).astype(np.float32)
    x[1] = np.sign(site.a[0])
    x_q, _ = quantised_tokens(x, site.x_bound)
    for token in x_q:
        request = DirectRequest()
        words, seeds = request.encrypted(layout_of(d, rows), token)
        reply = served.answer(words, seeds, *half_of(request))
        wanted = token.astype(np.int64) @ site.a.T.astype(np.int64)
        assert np.array_equal(request.products(layout_of(d, rows), reply), wanted)
        request.close()


def test_exact_at_both_ends_of_the_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    site = quantised_rows(np.random.default_rng(1).standard_normal((16, 128)))
    x_q, _ = quantised_tokens(np.ones((1, 128), dtype=np.float32), site.x_bound)
    for end in (-DIRECT_FLOOD, DIRECT_FLOOD - 1):
        monkeypatch.setattr(
            direct, "floods", lambda count, bound, end=end: np.full(count, end, dtype=np.int64)
        )
        request = DirectRequest()
        reply = DirectSite(site.a).answer(*request.encrypted(layout_of(128, 16), x_q[0]), *half_of(request))
        assert np.array_equal(
            request.products(layout_of(128, 16), reply), (x_q[0].astype(np.int64) @ site.a.T.astype(np.int64))
        )


def decrypted(request: DirectRequest, words: np.ndarray) -> np.ndarray:
    """Every coefficient of a reply as the key holder sees it, int64 [N] modulo t."""
    phase = Secret(request).phase(words)
    return np.array([(int(value) * T + Q // 2) // Q % T for value in phase], dtype=np.int64)


def test_other_coefficients_are_masked_and_without_masks_tell_single_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """x = X^0 alone: the product's other coefficients are single weights that were not asked for."""
    site = quantised_rows(np.random.default_rng(1).standard_normal((16, 128)))
    layout = layout_of(128, 16)
    unit = np.zeros(128, dtype=np.int32)
    unit[0] = 1
    wanted = DirectSite(site.a)._polynomials(site.a)[0, 0]

    def seen() -> int:
        request = DirectRequest()
        reply = DirectSite(site.a).answer(*request.encrypted(layout, unit), *half_of(request))
        values = decrypted(request, reply[0])
        return int(((values + T // 2) % T - T // 2 == wanted).sum())

    assert seen() <= layout.rows + 2  # not what else fits into the group
    nothing = np.zeros((1, N), dtype=np.uint32)
    monkeypatch.setattr(direct, "ring_rows", lambda *_: nothing)
    assert seen() == N


def test_coefficients_of_rows_that_are_not_there_are_masked_too() -> None:
    """Three rows where 32 fit: x with more coefficients than it should have would be told 29 sums more."""
    site = quantised_rows(np.random.default_rng(1).standard_normal((3, 128)))
    layout, request = layout_of(128, 3), DirectRequest()
    words, seeds = request.encrypted(layout, np.ones(128, dtype=np.int32))
    values = [decrypted(request, DirectSite(site.a).answer(words, seeds, *half_of(request))[0]) for _ in "12"]
    same = np.flatnonzero(values[0] == values[1])
    assert set(layout.targets(0)) <= set(same)
    assert len(layout.targets(0)) == 3
    assert len(same) <= 5


def test_a_reply_is_re_randomised() -> None:
    """c1 of the same request differs each time by more than rounding: it is no function of A and c1 sent.

    With a second half that hides nothing it is one, whatever the first is.
    """
    site = quantised_rows(np.random.default_rng(1).standard_normal((16, 128)))
    request = DirectRequest()
    words, seeds = request.encrypted(layout_of(128, 16), np.ones(128, dtype=np.int32))
    halves, known = half_of(request), np.zeros((1, 4, N), dtype=np.uint32)
    nothing = np.zeros_like(halves[0])
    for b, elements in (halves, (nothing, halves[1]), (halves[0], known)):
        one, two = (
            DirectSite(site.a).answer(words, seeds, b, elements)[0, 1, 0].astype(np.int64) for _ in range(2)
        )
        difference = (one - two + PRIMES[0] // 2) % PRIMES[0] - PRIMES[0] // 2
        assert (np.abs(difference).mean() > PRIMES[0] / 8) == (elements is not known)


def test_what_is_malformed_or_too_large_is_refused() -> None:
    site = quantised_rows(np.random.default_rng(1).standard_normal((16, 128)))
    request = DirectRequest()
    words, seeds = request.encrypted(layout_of(128, 16), np.ones(128, dtype=np.int32))
    wrong = words.copy()
    wrong[0, 1, 3] = PRIMES[1]
    served = DirectSite(site.a)
    for bad in (wrong, np.concatenate([words, words])):
        with pytest.raises(HeUnavailable):
            served.answer(bad, seeds, *half_of(request))
    with pytest.raises(HeUnavailable):
        served.answer(words, seeds, half_of(request)[0] | np.uint32(1 << 31), half_of(request)[1])
    with pytest.raises(HeUnavailable):
        request.products(layout_of(128, 16), np.ones((1, 2, 3, N - 1), dtype=np.uint32))
    with pytest.raises(HeUnavailable, match="too large"):
        DirectSite(np.full((48, 4096), 30_000, dtype=np.int16))
