"""The direct mode: one token, one round trip, nothing prepared; for low rates.

A token's integers lie in coefficients, `chunk` of them per ciphertext: x_j(X) = sum_k x[j chunk + k] X^k. A
group of N / chunk rows is a plaintext a_j(X) = sum_i sum_k a[i, j chunk + k] X^(i chunk + chunk - 1 - k),
so that coefficient i chunk + chunk - 1 of sum_j a_j x_j is row i's product. Every other coefficient would
be more of A than was asked for: a uniform mask covers it. Re-randomised and flooded as a block's reply is.
One key is enough here: a u hides one token's answer, so at most 32 sums of its coefficients are ever told.

Noise: |a e| <= 21 * (magnitudes of a group's weights) < 2^30, so the flood leaves 2^31 of the gap and hides
it to 2^-32 in the worst case.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tensafe_gpu.helora.keystream import floods, new_key, ring_rows
from tensafe_gpu.helora.parameters import PRIMES, N, Q, T
from tensafe_gpu.helora.ports import GARBAGE, PARAMETERS_REFUSED, HeUnavailable
from tensafe_gpu.helora.public_keys import DIRECT_KEY, KEY_ID_BYTES, common_elements, encryptors, halves
from tensafe_gpu.helora.quantise import Int16Array
from tensafe_gpu.helora.residues import Int64Array, added, below_primes, centred_mod_t, scaled_up
from tensafe_gpu.helora.seal_library import check_ciphertext, seal, shared_context
from tensafe_gpu.helora.seal_memory import WordReader
from tensafe_gpu.helora.seal_stream import (
    SEED_BYTES,
    MemoryFile,
    SeedArray,
    WordArray,
    ciphertext_from,
    ciphertext_from_seed,
    plain_from,
    plain_words,
)

DIRECT_FLOOD: Final = Q // (2 * T) - (1 << 31)
_MAX_NOISE: Final = 1 << 30
_CHUNKS: Final = (128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class DirectLayout:
    """How a site of `rows` x `d_in` is cut: `chunks` ciphertexts up, `groups` down."""

    d_in: int
    rows: int
    chunk: int

    @property
    def chunks(self) -> int:
        return -(-self.d_in // self.chunk)

    @property
    def rows_per_group(self) -> int:
        return N // self.chunk

    @property
    def groups(self) -> int:
        return -(-self.rows // self.rows_per_group)

    def targets(self, group: int) -> npt.NDArray[np.int64]:
        """The coefficients that carry a group's rows; the last group may have fewer than fit."""
        rows = min(self.rows_per_group, self.rows - group * self.rows_per_group)
        return np.arange(rows) * self.chunk + self.chunk - 1


def layout_of(d_in: int, rows: int) -> DirectLayout:
    """The cut with the least to send: a reply has two polynomials, a request one and a seed."""
    cuts = [DirectLayout(d_in, rows, chunk) for chunk in _CHUNKS]
    return min(cuts, key=lambda cut: cut.chunks + 2 * cut.groups)


def direct_elements(nonce: bytes, key_id: bytes) -> WordArray:
    """The `a` of a request's one key: uint32 [1, 4, N]."""
    return common_elements(nonce, DIRECT_KEY, key_id, 1)


class DirectRequest:
    """The key holder's side of one request: its own key, gone with it. Not for several threads at once."""

    def __init__(self) -> None:
        self.key_id = os.urandom(KEY_ID_BYTES)
        self._keys = seal.KeyGenerator(shared_context())
        self._reader, self._file = WordReader(), MemoryFile()

    def public_half(self, nonce: bytes) -> WordArray:
        """uint32 [4, N]. `nonce`: of the connection."""
        half: WordArray = halves(self._keys, direct_elements(nonce, self.key_id), self._file)[0]
        return half

    def encrypted(self, layout: DirectLayout, x_q: npt.NDArray[np.int32]) -> tuple[WordArray, SeedArray]:
        """A token's int32 [d_in] -> uint32 [chunks, 3, N] and seeds uint8 [chunks, 64]."""
        encryptor = seal.Encryptor(shared_context(), self._keys.secret_key())
        messages = np.zeros((layout.chunks, N), dtype=np.uint32)
        padded = np.zeros(layout.chunks * layout.chunk, dtype=np.uint32)
        padded[: layout.d_in] = x_q.view(np.uint32) & np.uint32(T - 1)
        messages[:, : layout.chunk] = padded.reshape(layout.chunks, layout.chunk)
        words = np.empty((layout.chunks, len(PRIMES), N), dtype=np.uint32)
        seeds = np.empty((layout.chunks, SEED_BYTES), dtype=np.uint8)
        for row in range(layout.chunks):
            words[row], seed = self._reader.seeded(encryptor.encrypt_zero_symmetric())
            seeds[row] = np.frombuffer(seed, dtype=np.uint8)
        for level, summand in enumerate(scaled_up(messages)):
            words[:, level] = added(words[:, level], summand, PRIMES[level])
        return words, seeds

    def products(self, layout: DirectLayout, reply: WordArray) -> Int64Array:
        """uint32 [groups, 2, 3, N] -> A_q x_q, int64 [R]. Raises HeUnavailable for what cannot be a reply."""
        if reply.shape != (layout.groups, 2, len(PRIMES), N) or not below_primes(reply):
            raise HeUnavailable(GARBAGE, "the adapter holder's ciphertexts have another shape or range")
        decryptor, plain = seal.Decryptor(shared_context(), self._keys.secret_key()), seal.Plaintext()
        parts = []
        for group, words in enumerate(reply):
            ciphertext = ciphertext_from(words, self._file)
            check_ciphertext(ciphertext)
            decryptor.decrypt(ciphertext, plain)
            parts.append(plain_words(self._file.saved(plain))[layout.targets(group)])
        return centred_mod_t(np.concatenate(parts))

    def close(self) -> None:
        """Forget the key."""
        del self._keys
        self._reader.close()
        self._file.close()


class DirectSite:
    """The adapter holder's side of one site: its plaintexts, transformed once. Not for several threads
    at once.
    """

    def __init__(self, a: Int16Array) -> None:
        """`a` int16 [R, d_in]. Raises HeUnavailable if a group's weights would outgrow the flood."""
        rows, d_in = a.shape
        self.layout = layout_of(d_in, rows)
        self._reader, self._file = WordReader(), MemoryFile()
        self._evaluator = seal.Evaluator(shared_context())
        polynomials = self._polynomials(a)
        if 21 * int(np.abs(polynomials).sum(axis=(1, 2)).max()) >= _MAX_NOISE:
            raise HeUnavailable(PARAMETERS_REFUSED, "this site is too large for the direct mode")
        self._plains = [[self._transformed(one) for one in group] for group in polynomials]

    def check(self, words: WordArray) -> None:
        """Raise HeUnavailable for words that `answer` would refuse."""
        if words.shape != (self.layout.chunks, len(PRIMES), N) or not below_primes(words):
            raise HeUnavailable(PARAMETERS_REFUSED, "ciphertexts with words out of range, or too many")

    def answer(self, words: WordArray, seeds: SeedArray, b: WordArray, elements: WordArray) -> WordArray:
        """One token: uint32 [chunks, 3, N] and seeds -> uint32 [groups, 2, 3, N]. Raises HeUnavailable
        for bad words. The halves of the request's public key are uint32 [4, N] and [1, 4, N].
        """
        layout = self.layout
        self.check(words)
        (encryptor,) = encryptors(b[np.newaxis], elements, self._file)
        inputs = [self._input(words[row], seeds[row].tobytes()) for row in range(layout.chunks)]
        sums = [self._sum(inputs, group) for group in self._plains]
        return np.stack([self._hidden(number, one, encryptor) for number, one in enumerate(sums)])

    def _polynomials(self, a: Int16Array) -> Int64Array:
        """[groups, chunks, N]."""
        layout = self.layout
        padded = np.zeros(
            (layout.groups * layout.rows_per_group, layout.chunks * layout.chunk), dtype=np.int64
        )
        padded[: a.shape[0], : a.shape[1]] = a
        cut = padded.reshape(layout.groups, layout.rows_per_group, layout.chunks, layout.chunk)[..., ::-1]
        return np.ascontiguousarray(cut.transpose(0, 2, 1, 3)).reshape(layout.groups, layout.chunks, N)

    def _transformed(self, polynomial: Int64Array) -> Any:  # noqa: ANN401 - SEAL's own type
        if not polynomial.any():
            return None
        plain = plain_from((polynomial % T).astype(np.uint32), self._file)
        result = seal.Plaintext()
        self._evaluator.transform_to_ntt(plain, shared_context().first_parms_id(), result)
        return result

    def _input(self, words: WordArray, seed: bytes) -> Any:  # noqa: ANN401 - SEAL's own type
        ciphertext = ciphertext_from_seed(words, seed, self._file)
        check_ciphertext(ciphertext)
        result = seal.Ciphertext()
        self._evaluator.transform_to_ntt(ciphertext, result)
        return result

    def _sum(self, inputs: list[Any], group: list[Any]) -> WordArray:
        """uint32 [2, 3, N]; zeros if all of the group's weights are zero."""
        total = None
        for one, plain in zip(inputs, group, strict=True):
            if plain is None:
                continue
            product = seal.Ciphertext()
            self._evaluator.multiply_plain(one, plain, product)
            if total is None:
                total = product
            else:
                self._evaluator.add_inplace(total, product)
        if total is None:
            return np.zeros((2, len(PRIMES), N), dtype=np.uint32)
        self._evaluator.transform_from_ntt_inplace(total)
        return self._reader.whole(total)

    def _hidden(self, group: int, words: WordArray, encryptor: Any) -> WordArray:  # noqa: ANN401 - as above
        mask = ring_rows(new_key(), 0, 1, N)[0].copy()
        mask[self.layout.targets(group)] = 0
        result = words.astype(np.int64) + self._zero(encryptor)
        flood = floods(N, DIRECT_FLOOD)
        for level, (prime, scaled) in enumerate(zip(PRIMES, scaled_up(mask), strict=True)):
            result[0, level] += flood % prime + scaled.astype(np.int64)
            result[:, level] %= prime
        return result.astype(np.uint32)

    def _zero(self, encryptor: Any) -> WordArray:  # noqa: ANN401 - as above
        """A fresh encryption of zero: uint32 [2, 3, N]."""
        zero = seal.Ciphertext()
        encryptor.encrypt_zero(zero)
        return self._reader.whole(zero)
