"""The key holder's half of preprocessing: encrypts random masks, keeps its share of A times them.

For a block of 4096 future tokens of one site: rho in Z_t^(4096 x d_in) from a key, feature j of all tokens
in one ciphertext. The secret key is the block's own and is gone with the block. What is kept is one uint32
[4096, R]; rho is made again from its key, row by row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from tensafe_gpu.helora.keystream import new_key, ring_rows
from tensafe_gpu.helora.parameters import PRIMES, N
from tensafe_gpu.helora.ports import GARBAGE, HeUnavailable
from tensafe_gpu.helora.public_keys import BLOCK_KEY, KEY_ID_BYTES, common_elements, halves, keys_of_block
from tensafe_gpu.helora.residues import added, below_primes, scaled_up
from tensafe_gpu.helora.seal_library import check_ciphertext, seal, shared_context
from tensafe_gpu.helora.seal_memory import WordReader
from tensafe_gpu.helora.seal_stream import (
    SEED_BYTES,
    MemoryFile,
    WordArray,
    ciphertext_from,
    plain_words,
)

BLOCK_ID_BYTES: Final = KEY_ID_BYTES
_ROWS_AT_ONCE: Final = 8
"""Masks of so many features are scaled together: their arrays stay in the core's cache."""

SeedArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PreparedBlock:
    """Masks ready for use: `shares` uint32 [N, R] are A rho - s modulo t, by token."""

    block_id: bytes
    rho_key: bytes = field(repr=False)
    shares: WordArray = field(repr=False)

    def rho(self, first: int, count: int, d_in: int) -> WordArray:
        """The masks of tokens [first, first + count): uint32 [count, d_in]."""
        return ring_rows(self.rho_key, first, count, d_in)


class PreparingBlock:
    """A block while its masks are encrypted. Not for several threads at once."""

    def __init__(self, d_in: int, rows: int) -> None:
        self.block_id = os.urandom(BLOCK_ID_BYTES)
        self._d_in, self._rows, self._key = d_in, rows, new_key()
        self._keys = seal.KeyGenerator(shared_context())
        self._encryptor = seal.Encryptor(shared_context(), self._keys.secret_key())
        self._reader, self._file = WordReader(), MemoryFile()
        # [d_in, N]: the table by feature, for the time of the encryption.
        self._rho = np.ascontiguousarray(ring_rows(self._key, 0, N, d_in).T)

    def public_halves(self, nonce: bytes) -> WordArray:
        """uint32 [keys, 4, N]: with them the adapter holder re-randomises. `nonce`: of the connection."""
        count = keys_of_block(self._d_in)
        elements = common_elements(nonce, BLOCK_KEY, self.block_id, count)
        return halves(self._keys, elements, self._file)

    def encrypted(self, first: int, count: int) -> tuple[WordArray, SeedArray]:
        """Encryptions of features [first, first + count): uint32 [count, 3, N] and their seeds, uint8
        [count, 64].
        """
        words = np.empty((count, len(PRIMES), N), dtype=np.uint32)
        seeds = np.empty((count, SEED_BYTES), dtype=np.uint8)
        for row in range(count):
            words[row], seed = self._reader.seeded(self._encryptor.encrypt_zero_symmetric())
            seeds[row] = np.frombuffer(seed, dtype=np.uint8)
        self._add_masks(words, first)
        return words, seeds

    def encrypted_whole(self, first: int, count: int) -> WordArray:
        """As `encrypted`, with second polynomials in place of seeds: uint32 [count, 2, 3, N].

        Twice the bytes, and whoever takes them has nothing to expand, which costs half an encryption.
        """
        words, zero = np.empty((count, 2, len(PRIMES), N), dtype=np.uint32), seal.Ciphertext()
        for row in range(count):
            self._encryptor.encrypt_zero_symmetric(zero)
            self._reader.whole(zero, words[row])
        self._add_masks(words[:, 0], first)
        return words

    def _add_masks(self, zeros: WordArray, first: int) -> None:
        """Turn first polynomials of zeros, uint32 [count, 3, N], into those of features from `first`."""
        for begin in range(0, len(zeros), _ROWS_AT_ONCE):
            some = zeros[begin : begin + _ROWS_AT_ONCE]
            messages = self._rho[first + begin : first + begin + len(some)]
            for level, summand in enumerate(scaled_up(messages)):
                some[:, level] = added(some[:, level], summand, PRIMES[level])

    def finish(self, reply: WordArray) -> PreparedBlock:
        """Decrypt the adapter holder's uint32 [R, 2, 3, N]. Raises HeUnavailable for what cannot be one."""
        if reply.shape != (self._rows, 2, len(PRIMES), N) or not below_primes(reply):
            raise HeUnavailable(GARBAGE, "the adapter holder's ciphertexts have another shape or range")
        decryptor, plain = seal.Decryptor(shared_context(), self._keys.secret_key()), seal.Plaintext()
        shares = np.empty((N, self._rows), dtype=np.uint32)
        for row in range(self._rows):
            ciphertext = ciphertext_from(reply[row], self._file)
            check_ciphertext(ciphertext)
            decryptor.decrypt(ciphertext, plain)
            shares[:, row] = plain_words(self._file.saved(plain))
        return PreparedBlock(self.block_id, self._key, shares)

    def close(self) -> None:
        """Forget the secret key and the table."""
        del self._keys, self._encryptor, self._rho
        self._reader.close()
        self._file.close()
