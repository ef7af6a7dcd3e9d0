"""The adapter holder's half of preprocessing: A times encrypted masks, hidden before it leaves.

A sum of ciphertexts with integer weights is a product of A with their words modulo each prime: one exact
float64 matrix product. What would leave is then covered twice. `c1_out = A c1` is a linear system for A, so
encryptions of zero are added, under public keys whose second half the key holder cannot choose (public_keys);
the noise `A e` is another one (the key holder knows e), so a flood as wide as decryption allows is added to
c0. Without either the adapter is lost with one reply: tests/integration/adapter_holder runs the attacks on
builds that lack one.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tensafe_gpu.helora.keystream import floods, ring_rows
from tensafe_gpu.helora.parameters import PRIMES, N, T
from tensafe_gpu.helora.ports import PARAMETERS_REFUSED, HeUnavailable
from tensafe_gpu.helora.public_keys import encryptors
from tensafe_gpu.helora.quantise import Float64Array, Int16Array
from tensafe_gpu.helora.residues import below_primes, reduced, scaled_up
from tensafe_gpu.helora.seal_library import seal
from tensafe_gpu.helora.seal_memory import WordReader
from tensafe_gpu.helora.seal_stream import (
    MemoryFile,
    SeedArray,
    WordArray,
    ciphertext_from_seed,
)

_MASK: Final = np.uint32(T - 1)
_FEW: Final = 16
"""Words of a second polynomial that are looked at before all of them."""


def answered(a_columns: Float64Array, z: WordArray, shares: WordArray) -> WordArray:
    """The online step: A float64 [d_in, R], z uint32 [tokens, d_in] and its rows of s, both below t ->
    A z - s, uint32 [tokens, R] below t.

    Sums stay below 2**20 * 2**28: exact in float64.
    """
    sums = (z.astype(np.float64) @ a_columns).astype(np.int64)
    return (sums.astype(np.uint32) - shares) & _MASK


def evaluation_bytes(a: Int16Array) -> int:
    """What the sums of one block of this site, int16 [R, d_in], and its A take while it is evaluated."""
    return 8 * (len(a) * 2 * len(PRIMES) * N + a.size)


class BlockEvaluation:
    """One block of one site while its ciphertexts arrive, in order. Not for several threads at once."""

    def __init__(self, a: Int16Array, b: WordArray, elements: WordArray) -> None:
        """`a` int16 [R, d_in]; the halves of its public keys, uint32 [keys, 4, N] both.

        Raises HeUnavailable for a `b` out of range.
        """
        self._a = a.astype(np.float64)
        self._reader, self._file = WordReader(), MemoryFile()
        self._encryptors = encryptors(b, elements, self._file)
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
        self._check(words)
        block = np.empty((len(words), 2, len(PRIMES), N))
        block[:, 0] = words
        for row in range(len(words)):
            ciphertext = ciphertext_from_seed(words[row], seeds[row].tobytes(), self._file)
            if ciphertext.size() != 2 or ciphertext.is_transparent():
                raise HeUnavailable(PARAMETERS_REFUSED, "a ciphertext is transparent")
            block[row, 1] = self._reader.second(ciphertext)
        self._add(block)

    def add_whole(self, words: WordArray) -> None:
        """As `add`, with second polynomials in place of seeds: uint32 [count, 2, 3, N]."""
        self._check(words)
        begun = words[:, 1, 0, :_FEW].any(axis=1)  # of a ciphertext that is one, for all but certain
        if not words[~begun, 1].any(axis=(1, 2)).all():
            raise HeUnavailable(PARAMETERS_REFUSED, "a ciphertext is transparent")
        self._add(words.astype(np.float64))

    def _check(self, words: WordArray) -> None:
        if self._next + len(words) > self._a.shape[1] or not below_primes(words):
            raise HeUnavailable(PARAMETERS_REFUSED, "ciphertexts with words out of range, or too many")

    def _add(self, block: Float64Array) -> None:
        """The next features' words, float64 [count, 2, 3, N]."""
        count, begin = len(block), self._next
        # scipy's dgemm would add in place and be a quarter faster, but it keeps the interpreter meanwhile.
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
            # All of it stays below 2**51, so that one reduction at the end is enough.
            result[row] += zero
            for level, (prime, scaled) in enumerate(zip(PRIMES, scaled_up(shares[row]), strict=True)):
                result[row, 0, level] += (flood % prime) - scaled.astype(np.int64)
                for half in (0, 1):
                    reduced(result[row, half, level], prime)
        return result.astype(np.uint32)

    def close(self) -> None:
        """Free the memory files."""
        self._reader.close()
        self._file.close()

    def _zero(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The sum of fresh encryptions of zero under each public key: int64 [2, 3, N], not reduced."""
        zero, total = seal.Ciphertext(), np.zeros((2, len(PRIMES), N), dtype=np.int64)
        for encryptor in self._encryptors:
            encryptor.encrypt_zero(zero)
            total += self._reader.words(zero).view(np.int64)
        return total

    def _flood(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return floods(N)
