"""The noise is Gaussian, regenerable, and independent across steps and runs."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from tensafe.contracts.errors import InvalidRequest
from tensafe.privacy import noise
from tensafe.privacy.noise import correlated_gaussian, gaussian, grid_spacing, noise_key_id, round_to_grid

KEY = bytes(range(32))
MILLION = 1_000_000


@pytest.fixture(scope="module")
def million() -> np.ndarray:
    return gaussian(KEY, 7, MILLION, 1.0)


def _chi2(samples: np.ndarray) -> float:
    edges = stats.norm.ppf(np.linspace(0, 1, 65))
    return float(stats.chisquare(np.histogram(samples, bins=edges)[0]).pvalue)


def _variance(samples: np.ndarray) -> float:
    squares = float((samples**2).sum())
    return 2 * float(min(stats.chi2.cdf(squares, samples.size), stats.chi2.sf(squares, samples.size)))


def _tail(samples: np.ndarray) -> float:
    beyond = int((np.abs(samples) > 4).sum())
    return float(stats.binomtest(beyond, samples.size, 2 * stats.norm.sf(4)).pvalue)


def _pair(samples: np.ndarray) -> float:
    products = samples[::2] ** 2 * samples[1::2] ** 2 - 1
    return _two_sided(float(products.sum()) / math.sqrt(samples.size / 2 * 8))


P_VALUES: dict[str, Callable[[np.ndarray], float]] = {
    "ks": lambda samples: float(stats.kstest(samples, "norm").pvalue),
    "chi2": _chi2,
    "variance": _variance,
    "tail": _tail,
    "mean": lambda samples: _two_sided(float(samples.mean()) * math.sqrt(samples.size)),
    "lag": lambda samples: _two_sided(float((samples[:-1] * samples[1:]).sum()) / math.sqrt(samples.size)),
    "pair": _pair,
}
"""How likely such samples are under a standard Gaussian."""


def _two_sided(z: float) -> float:
    return 2 * float(stats.norm.sf(abs(z)))


@pytest.mark.parametrize("test", list(P_VALUES))
def test_a_million_samples_are_gaussian(million: np.ndarray, test: str) -> None:
    assert P_VALUES[test](million) > 1e-3


def test_the_tests_of_gaussianity_can_fail(million: np.ndarray) -> None:
    """Planted bugs: half a percent too little noise, a bias, repeats, no sign, no tail, no angle."""
    half = million[: MILLION // 2]
    assert P_VALUES["variance"](million * 0.995) < 1e-6
    assert P_VALUES["mean"](million + 0.01) < 1e-6
    assert P_VALUES["lag"](np.repeat(half, 2)) < 1e-6
    assert P_VALUES["ks"](np.abs(half)) < 1e-6
    assert P_VALUES["chi2"](np.abs(half)) < 1e-6
    assert P_VALUES["tail"](np.clip(million, -4, 4)) < 1e-6
    assert P_VALUES["pair"](np.repeat(np.hypot(half[::2], half[1::2]) / math.sqrt(2), 2)) < 1e-6


def test_the_tail_reaches_9_4_deviations_and_never_infinity() -> None:
    lowest = noise._box_muller(np.zeros((1, 2), dtype=np.uint64))
    highest = noise._box_muller(np.full((1, 2), 2**64 - 1, dtype=np.uint64))
    assert lowest[0, 0] == pytest.approx(math.sqrt(2 * 64 * math.log(2)))
    assert np.isfinite(lowest).all()
    assert np.isfinite(highest).all()
    assert highest[0, 0] == 0.0


def test_box_muller_is_the_textbook_formula() -> None:
    words = np.frombuffer(np.random.default_rng(1).bytes(16 * 1000), dtype="<u8").reshape(-1, 2)
    ours = noise._box_muller(words)
    for (first, second), (x, y) in zip(words[:200].tolist(), ours[:200].tolist(), strict=True):
        radius = math.sqrt(-2 * math.log((first + 1) / 2**64))
        angle = 2 * math.pi * (second >> 11) / 2**53
        assert x == pytest.approx(radius * math.cos(angle), rel=1e-9, abs=1e-9)
        assert y == pytest.approx(radius * math.sin(angle), rel=1e-9, abs=1e-9)


def test_the_keystream_is_aes_256_ctr_under_a_key_of_the_step() -> None:
    """The whole construction once more from its description, sample by sample."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    label = b"tensafe/privacy/gaussian-noise/v1" + (7).to_bytes(8, "big")
    key = HKDF(hashes.SHA256(), 32, None, label).derive(KEY)
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(64))
    words = [int.from_bytes(stream[at : at + 8], "little") for at in range(0, 64, 8)]
    expected = []
    for first, second in zip(words[::2], words[1::2], strict=True):
        radius = math.sqrt(-2 * math.log((first + 1) / 2**64))
        angle = 2 * math.pi * (second >> 11) / 2**53
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    assert gaussian(KEY, 7, 8, 2.5) == pytest.approx(2.5 * np.array(expected), abs=2.5 * 2**-29)


def test_known_values_do_not_change_between_versions() -> None:
    """A change here would draw other noise for a step that was already released: never allow it."""
    golden = [0.6771204778924584, 0.45871655736118555, 0.5929239727556705, -0.30138867255300283]
    assert gaussian(KEY, 7, 4, 1.0) == pytest.approx(golden, abs=2**-29)


def test_regeneration_is_bit_identical(million: np.ndarray) -> None:
    again = gaussian(KEY, 7, MILLION, 1.0)
    assert again.tobytes() == million.tobytes()


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 32766, 32767, 32768, 65537, 99_999])
@pytest.mark.parametrize("count", [0, 1, 2, 33_333])
def test_any_part_equals_the_whole(million: np.ndarray, offset: int, count: int) -> None:
    part = gaussian(KEY, 7, count, 1.0, offset=offset)
    assert part.tobytes() == million[offset : offset + count].tobytes()


def test_steps_and_runs_are_uncorrelated() -> None:
    count = 200_000
    others = [gaussian(KEY, step, count, 1.0) for step in (0, 1, 2, 255, 256, 2**32, 2**63 - 1)]
    others += [gaussian(bytes(31) + bytes([last]), 0, count, 1.0) for last in (0, 1, 2)]
    correlation = np.corrcoef(np.stack(others)) - np.eye(len(others))
    assert np.abs(correlation).max() < 4.5 / math.sqrt(count)
    shifted = np.corrcoef(others[0][2:], others[1][:-2])[0, 1]
    assert abs(shifted) < 4.5 / math.sqrt(count)


def test_no_block_repeats_in_a_million_samples(million: np.ndarray) -> None:
    blocks = np.concatenate([million, gaussian(KEY, 8, MILLION, 1.0)]).view(np.complex128)
    assert len(np.unique(blocks)) == len(blocks) == MILLION


@pytest.mark.parametrize("deviation", [1.0, 0.3, 4.7e-8, 123.4, 2.0**-20, 1e6])
def test_the_noise_scales_and_lies_on_the_grid(deviation: float) -> None:
    samples = gaussian(KEY, 3, 10_000, deviation)
    spacing = grid_spacing(deviation)
    assert math.frexp(spacing)[0] == 0.5, "a power of two"
    assert 2.0**-31 < spacing / deviation <= 2.0**-30
    assert (samples / spacing == np.rint(samples / spacing)).all()
    assert samples == pytest.approx(deviation * gaussian(KEY, 3, 10_000, 1.0), abs=2 * spacing + 1e-300)


def test_a_sum_on_the_grid_plus_noise_is_exact() -> None:
    """Mironov 2012: the result's low bits must not tell the sum; on the grid they are always zero."""
    rng = np.random.default_rng(3)
    sums = round_to_grid(rng.normal(size=20_000) * 50, 0.7)
    noisy = sums + gaussian(KEY, 1, 20_000, 0.7)
    spacing = grid_spacing(0.7)
    whole = [int(x) + int(y) for x, y in zip(sums / spacing, (noisy - sums) / spacing, strict=True)]
    assert [int(x) for x in noisy / spacing] == whole
    raw = rng.normal(size=20_000)
    assert (raw / spacing != np.rint(raw / spacing)).mean() > 0.99, "without the grid they are not"


def test_rounding_moves_a_sum_by_half_a_spacing_at_most() -> None:
    values = np.random.default_rng(4).normal(size=(100, 7)).astype(np.float32)
    rounded = round_to_grid(values, 1.0)
    assert rounded.shape == (100, 7)
    assert rounded.dtype == np.float64
    assert np.abs(rounded - values).max() <= grid_spacing(1.0) / 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sum_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InvalidRequest, match="not finite"):
        round_to_grid([1.0, value], 1.0)


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf, 1e-300])
def test_a_deviation_that_gives_no_noise_is_refused(deviation: float) -> None:
    with pytest.raises(InvalidRequest, match="standard deviation"):
        gaussian(KEY, 0, 1, deviation)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_number_of_threads_changes_nothing(million: np.ndarray, threads: int, offset: int) -> None:
    count = 300_001
    drawn = gaussian(KEY, 7, count, 1.0, offset=offset, threads=threads)
    assert drawn.tobytes() == million[offset : offset + count].tobytes()
    weights = (1.0, 0.5, 0.25)
    alone = correlated_gaussian(KEY, 5, weights, count, 1.0, offset=offset)
    assert correlated_gaussian(KEY, 5, weights, count, 1.0, offset=offset, threads=threads).tobytes() == (
        alone.tobytes()
    )


def test_a_failure_in_a_thread_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a vector would be zeros, which is no noise at all."""
    drawn = iter(range(1000))

    def failing(words: np.ndarray) -> np.ndarray:
        if next(drawn) == 5:
            raise MemoryError
        return np.zeros(words.shape)

    monkeypatch.setattr(noise, "_box_muller", failing)
    with pytest.raises(MemoryError):
        gaussian(KEY, 7, 1 << 18, 1.0, threads=4)


@pytest.mark.parametrize(("step", "count", "offset"), [(-1, 1, 0), (2**63, 1, 0), (0, -1, 0), (0, 1, -1)])
def test_bad_arguments_are_refused(step: int, count: int, offset: int) -> None:
    with pytest.raises(InvalidRequest):
        gaussian(KEY, step, count, 1.0, offset=offset)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_short_secret_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequest, match="32 bytes"):
        gaussian(bytes(size), 0, 1, 1.0)


def test_the_key_id_tells_secrets_apart_and_is_not_the_key() -> None:
    assert noise_key_id(KEY) != noise_key_id(bytes(32))
    assert len(noise_key_id(KEY)) == 32
    assert noise_key_id(KEY) not in KEY.hex()


def test_chunks_bound_the_memory() -> None:
    tracemalloc.start()
    try:
        samples = gaussian(KEY, 0, 2_000_000, 1.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - samples.nbytes < 4_000_000
