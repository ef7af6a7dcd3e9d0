"""The adapter holder's half of preprocessing: A times encrypted masks, hidden before it leaves.

A sum of ciphertexts with integer weights is a product of A with their words modulo each prime: one exact
float64 matrix product. What would leave is then covered twice. `c1_out = A c1` is a linear system for A, so
an encryption of zero under the key holder's public key is added; the noise `A e` is another one (the key
holder knows e), so a flood as wide as decryption allows is added to c0. Without either the adapter is lost
with one reply: tests/integration/adapter_holder runs both attacks on builds that lack one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tensafe_gpu.helora.keystream import floods, ring_rows
from tensafe_gpu.helora.masks import SeedArray
from tensafe_gpu.helora.parameters import PRIMES, N
from tensafe_gpu.helora.ports import PARAMETERS_REFUSED, HeUnavailable
from tensafe_gpu.helora.quantise import Int16Array
from tensafe_gpu.helora.residues import below_primes, reduced, scaled_up
from tensafe_gpu.helora.seal_library import seal, shared_context
from tensafe_gpu.helora.seal_memory import WordReader
from tensafe_gpu.helora.seal_stream import (
    MemoryFile,
    WordArray,
    ciphertext_from_seed,
    public_key_from,
)

KEY_PRIMES: Final = tuple(
    int(prime.value()) for prime in shared_context().key_context_data().parms().coeff_modulus()
)
"""All four primes, which a public key has."""


class BlockEvaluation:
    """One block of one site while its ciphertexts arrive, in order. Not for several threads at once."""

    def __init__(self, a: Int16Array, public_key: WordArray) -> None:
        """`a` int16 [R, d_in]; `public_key` uint32 [2, 4, N]. Raises HeUnavailable for a key that will not
        do.
        """
        self._a = a.astype(np.float64)
        self._reader, self._file = WordReader(), MemoryFile()
        self._encryptor = public_encryptor(public_key, self._file)
        self._sums = np.zeros((a.shape[0], 2 * len(PRIMES) * N))
        self._next = 0

    @property
    def complete(self) -> bool:
        """Whether every feature has arrived."""
        return self._next == int(self._a.shape[1])

    @property
    def next_feature(self) -> int:
        """The feature that has to come next."""
        return self._next

    def add(self, words: WordArray, seeds: SeedArray) -> None:
        """The next features: uint32 [count, 3, N], uint8 [count, 64].

        Raises HeUnavailable for words out of range, too many features, and ciphertexts that are transparent.
        """
        count, begin = len(words), self._next
        if begin + count > self._a.shape[1] or not below_primes(words):
            raise HeUnavailable(PARAMETERS_REFUSED, "ciphertexts with words out of range, or too many")
        block = np.empty((count, 2, len(PRIMES), N))
        block[:, 0] = words
        for row in range(count):
            ciphertext = ciphertext_from_seed(words[row], seeds[row].tobytes(), self._file)
            if ciphertext.size() != 2 or ciphertext.is_transparent():
                raise HeUnavailable(PARAMETERS_REFUSED, "a ciphertext is transparent")
            block[row, 1] = self._reader.second(ciphertext)
        self._sums += self._a[:, begin : begin + count] @ block.reshape(count, -1)
        self._next = begin + count

    def reply(self, share_key: bytes) -> WordArray:
        """uint32 [R, 2, 3, N]: Enc(A rho - s), s being the rows of `share_key`; once, when complete."""
        rows = len(self._sums)
        result = self._sums.reshape(rows, 2, len(PRIMES), N)
        shares = np.ascontiguousarray(ring_rows(share_key, 0, N, rows).T)
        for row in range(rows):
            flood = self._flood()
            zero = self._zero()
            for level, (prime, scaled) in enumerate(zip(PRIMES, scaled_up(shares[row]), strict=True)):
                for half in (0, 1):
                    reduced(result[row, half, level], prime)
                    result[row, half, level] += zero[half, level]
                result[row, 0, level] += (flood % prime) - scaled.astype(np.int64)
                for half in (0, 1):
                    reduced(result[row, half, level], prime)
        return result.astype(np.uint32)

    def close(self) -> None:
        """Free the memory files."""
        self._reader.close()
        self._file.close()

    def _zero(self) -> WordArray:
        """A fresh encryption of zero under the key holder's public key: uint32 [2, 3, N]."""
        zero = seal.Ciphertext()
        self._encryptor.encrypt_zero(zero)
        return self._reader.whole(zero)

    def _flood(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return floods(N)


def public_encryptor(words: WordArray, file: MemoryFile) -> Any:  # noqa: ANN401 - SEAL's own type
    """A SEAL encryptor of uint32 [2, 4, N]. Raises HeUnavailable: words out of range, or a half of zeros."""
    limits = np.array(KEY_PRIMES, dtype=np.uint32)[:, np.newaxis]
    if words.shape != (2, len(KEY_PRIMES), N) or not (words < limits).all() or not words[1].any():
        raise HeUnavailable(PARAMETERS_REFUSED, "a public key with words out of range")
    return seal.Encryptor(shared_context(), public_key_from(words, file))
