"""Attacks of a key holder on what it receives, in plain numpy; none knows the adapter."""

from __future__ import annotations

import numpy as np

from tensafe_gpu.helora.direct import DirectRequest
from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.parameters import PRIMES, N, Q, T
from tensafe_gpu.helora.seal_stream import MemoryFile, ciphertext_from_seed, ciphertext_words


def solve_c1(sent_c1: np.ndarray, reply_c1: np.ndarray) -> np.ndarray:
    """Weights int64 [R, d] from A c1 = reply modulo the first prime, by elimination over d coefficients.

    sent_c1 [d, N], reply_c1 [R, N]: words modulo PRIMES[0]. Exact if the reply's second half is A c1.
    """
    prime, d = PRIMES[0], len(sent_c1)
    system = np.concatenate([sent_c1[:, :d], reply_c1[:, :d]]).T.astype(np.int64)  # [d, d + R]
    for column in range(d):
        pivot = column + int(np.flatnonzero(system[column:, column])[0])
        system[[column, pivot]] = system[[pivot, column]]
        system[column] = system[column] * pow(int(system[column, column]), -1, prime) % prime
        others = np.arange(d) != column
        system[others] = (system[others] - system[others, column][:, np.newaxis] * system[column]) % prime
    weights = system[:, d:].T
    return np.where(weights > prime // 2, weights - prime, weights)


def noise(words: np.ndarray, secret: Secret, messages: np.ndarray) -> np.ndarray:
    """float64 [N]: c0 + c1 sk - Q m / t, centred modulo Q, of one ciphertext uint32 [2, 3, N].

    The key holder has its secret key, so it can do this with everything it receives.
    """
    scaled = messages.astype(object) * Q // T
    left = (secret.phase(words) - scaled) % Q
    return np.where(left > Q // 2, left - Q, left).astype(np.float64)


def less_the_one_before(reply: np.ndarray) -> np.ndarray:
    """Ciphertexts uint32 [rows, 2, 3, N] -> [rows - 1, 2, 3, N], by subtraction modulo the primes."""
    primes = np.array(PRIMES)[:, np.newaxis]
    return (np.diff(reply.astype(np.int64), axis=0) % primes).astype(np.uint32)


class Secret:
    """A block's secret key in coefficients, and c0 + c1 sk by exact ring arithmetic over each prime."""

    def __init__(self, block: PreparingBlock) -> None:
        self._block = block
        self._key = ternary_key(block)

    def phase(self, words: np.ndarray) -> np.ndarray:
        """Numbers below Q, as Python integers [N], of uint32 [2, 3, N]."""
        total = np.zeros(N, dtype=object)
        for level, prime in enumerate(PRIMES):
            product = negacyclic(words[1, level].astype(np.int64), self._key)
            rest = Q // prime
            residue = (words[0, level].astype(object) + product) % prime
            total = total + residue * (rest * pow(rest, -1, prime))
        return total % Q


def negacyclic(a: np.ndarray, ternary: np.ndarray) -> np.ndarray:
    """a times a polynomial with coefficients -1, 0, 1 in Z[X]/(X^N + 1): float64 FFT on exact limbs."""
    total = np.zeros(N, dtype=object)
    for limb in range(2):
        part = (a >> (15 * limb)) & 0x7FFF
        size = 2 * N
        product = np.fft.irfft(np.fft.rfft(part, size) * np.fft.rfft(ternary, size), size)
        exact = np.rint(product).astype(np.int64)
        total = total + ((exact[:N] - exact[N:]) * (1 << (15 * limb))).astype(object)
    return total


def ternary_key(block: PreparingBlock | DirectRequest) -> np.ndarray:
    """The secret key's coefficients, by decrypting X^i-free ciphertexts: sk = phase of (0, 1), read bit
    by bit.

    (0, c) decrypts to round(t c sk / Q); with c = Q / 4 as a constant the plaintext is t / 4 times sk.
    """
    from tensafe_gpu.helora.seal_library import seal, shared_context
    from tensafe_gpu.helora.seal_stream import ciphertext_from, plain_words

    words = np.zeros((2, len(PRIMES), N), dtype=np.uint32)
    for level, prime in enumerate(PRIMES):
        words[1, level, 0] = (Q // 4) % prime
    file, plain = MemoryFile(), seal.Plaintext()
    decryptor = seal.Decryptor(shared_context(), block._keys.secret_key())
    decryptor.decrypt(ciphertext_from(words, file), plain)
    values = plain_words(file.saved(plain)).astype(np.int64)
    quarter = T // 4
    return np.select([abs(values - quarter) < 4, abs(values - 3 * quarter) < 4], [1, -1], 0)


def expanded(words: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """uint32 [count, 2, 3, N] of seeded ciphertexts."""
    file = MemoryFile()
    return np.stack(
        [
            ciphertext_words(file.saved(ciphertext_from_seed(w, s.tobytes(), file)))
            for w, s in zip(words, seeds, strict=True)
        ]
    )
