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

from tensafe_gpu.helora import kernels
from tensafe_gpu.helora.keystream import new_key, ring_rows
from tensafe_gpu.helora.parameters import PRIMES, N
from tensafe_gpu.helora.ports import GARBAGE, HeUnavailable
from tensafe_gpu.helora.public_keys import BLOCK_ID_BYTES, BLOCK_KEY, common_elements, halves, keys_of_block
from tensafe_gpu.helora.residues import below_primes
from tensafe_gpu.helora.seal_library import check_ciphertext, seal, shared_context
from tensafe_gpu.helora.seal_memory import WordReader
from tensafe_gpu.helora.seal_stream import (
    SEED_BYTES,
    MemoryFile,
    SeedArray,
    WordArray,
    ciphertext_from,
    plain_words,
)

_STRIP: Final = 64
"""Tokens: 256 bytes of each feature's row."""


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
        self._rho = _by_feature(ring_rows(self._key, 0, N, d_in))
        """[d_in, N]: for the time of the encryption."""

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
            zero, seed = self._reader.seeded(self._encryptor.encrypt_zero_symmetric())
            kernels.hide(zero, self._rho[first + row], words[row])
            seeds[row] = np.frombuffer(seed, dtype=np.uint8)
        return words, seeds

    def encrypted_whole(self, first: int, count: int) -> WordArray:
        """As `encrypted`, with second polynomials in place of seeds: uint32 [count, 2, 3, N].

        Twice the bytes, and whoever takes them has nothing to expand, which costs half an encryption.
        """
        words, zero = np.empty((count, 2, len(PRIMES), N), dtype=np.uint32), seal.Ciphertext()
        for row in range(count):
            self._encryptor.encrypt_zero_symmetric(zero)
            both = self._reader.words(zero)
            kernels.hide(both[0], self._rho[first + row], words[row, 0])
            np.copyto(words[row, 1], both[1], casting="unsafe")
        return words

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


def _by_feature(rho: WordArray) -> WordArray:
    """The table's transpose, by strips whose cache lines stay in the core: a sixth of numpy's time."""
    result = np.empty(rho.shape[::-1], dtype=rho.dtype)
    for first in range(0, len(rho), _STRIP):
        result[:, first : first + _STRIP] = rho[first : first + _STRIP].T
    return result
