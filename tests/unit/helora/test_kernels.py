"""Compiled loops have numpy's results, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tensafe_gpu.helora import kernels
from tensafe_gpu.helora.frames import FrameError
from tensafe_gpu.helora.online import masked, token_scales, unmasked
from tensafe_gpu.helora.parameters import PRIMES, N, T
from tensafe_gpu.helora.ports import NOT_FINITE, HeUnavailable
from tensafe_gpu.helora.quantise import MAX_X_BOUND, dequantised, quantised_tokens
from tensafe_gpu.helora.residues import added, centred_mod_t, scaled_up

WORDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 70))
"""Of widths that fill a vector register, and some that leave a rest."""


@given(
    arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.integers(1, MAX_X_BOUND),
    st.integers(0, 2**31),
)
def test_tokens_are_scaled_and_masked_as_in_numpy(x: np.ndarray, x_bound: int, seed: int) -> None:
    """Every finite number: zeros of either sign, the least and the largest."""
    x_q, scales = quantised_tokens(x, x_bound)
    assert token_scales(x, x_bound).tobytes() == scales.tobytes()
    rho = np.random.default_rng(seed).integers(0, T, x.shape, dtype=np.uint32)
    z = masked(x, scales, rho)
    assert z.dtype == np.uint32
    assert np.array_equal(z, (x_q.astype(np.int64) + rho) % T)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 36), (2, 15)])
def test_a_number_that_is_not_finite_is_refused_wherever_it_is(bad: float, place: tuple[int, int]) -> None:
    x = np.full((3, 37), np.finfo(np.float32).max, dtype=np.float32)
    token_scales(x, 1000)
    x[place] = bad
    with pytest.raises(HeUnavailable) as raised:
        token_scales(x, 1000)
    assert raised.value.code == NOT_FINITE


@given(
    arrays.arrays(np.uint32, (3, 21), elements=st.integers(0, T - 1)),
    arrays.arrays(np.uint32, (3, 21), elements=st.integers(0, T - 1)),
    arrays.arrays(np.float64, 3, elements=st.floats(0, 2.0**100)),
)
def test_products_are_centred_and_scaled_as_in_numpy(
    y: np.ndarray, shares: np.ndarray, scales: np.ndarray
) -> None:
    sums = centred_mod_t(y - shares)
    assert int(np.abs(sums).max()) <= T // 2
    wanted = dequantised(sums, scales)
    assert unmasked(y, shares, scales).tobytes() == wanted.tobytes()  # -0.0 is another number than 0.0
    into = np.full((4, 21), 7, dtype=np.float32)
    assert unmasked(y, shares, scales, into[1:]) is not None
    assert np.array_equal(into[1:], wanted)
    assert (into[0] == 7).all()


@pytest.mark.parametrize(("word", "share", "centred"), [
    (0, 0, 0), (1, 0, 1), (T // 2 - 1, 0, T // 2 - 1), (T // 2, 0, -T // 2), (T - 1, 0, -1),
    (0, 1, -1), (0, T - 1, 1), (0, T // 2, -T // 2), (1, T // 2, -T // 2 + 1),
])  # fmt: skip
def test_words_are_centred_modulo_t(word: int, share: int, centred: int) -> None:
    y, shares = np.array([[word]], dtype=np.uint32), np.array([[share]], dtype=np.uint32)
    assert unmasked(y, shares, np.ones(1)).tolist() == [[np.float32(centred)]]


@pytest.mark.parametrize("word", [T, T + 1, 2**31, 2**32 - 1])
def test_a_word_that_is_not_below_t_is_refused(word: int) -> None:
    y = np.zeros((2, 5), dtype=np.uint32)
    y[1, 4] = word
    with pytest.raises(FrameError, match="below t"):
        unmasked(y, np.zeros_like(y), np.ones(2))


def test_a_message_is_hidden_in_a_zero_as_in_numpy() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        zero = np.stack([rng.integers(0, prime, N) for prime in PRIMES])
        message = rng.integers(0, T, N).astype(np.uint32)
        message[:4] = 0, 1, T // 2, T - 1
        zero[:, :2], zero[:, 2:4] = 0, np.array(PRIMES)[:, np.newaxis] - 1
        hidden = np.empty((3, N), dtype=np.uint32)
        kernels.hide(zero.astype(np.uint64), message, hidden)
        for level, (prime, scaled) in enumerate(zip(PRIMES, scaled_up(message), strict=True)):
            assert np.array_equal(hidden[level], added(zero[level].astype(np.uint32), scaled, prime))
            assert int(hidden[level].max()) < prime


@pytest.mark.parametrize(("module", "works"), [("key_holder", False), ("evaluation", True)])
def test_without_numba_a_key_holder_says_what_to_install_and_an_adapter_holder_works(
    module: str, works: bool
) -> None:
    script = f"import sys; sys.modules['numba'] = None\nimport tensafe_gpu.helora.{module}\n"
    script += "import tensafe_gpu.adapter_holder.service, tensafe_gpu.adapter_holder.listener"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is works, done.stderr
    assert works or "pip install 'tensafe[sampler]'" in done.stderr
