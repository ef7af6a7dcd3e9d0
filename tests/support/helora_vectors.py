"""Both parties as docs/helora-wire.md describes them, in plain numpy: its vectors, and another program.

Nothing of the protocol's arithmetic is the project's here: transforms are `helora_rings`', residues Python's
integers. What SEAL alone defines, the words that a seed stands for, is asked of SEAL.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from tensafe_gpu.helora.parameters import PRIMES, N, Q, T
from tensafe_gpu.helora.seal_library import KEY_PRIMES
from tensafe_gpu.helora.seal_stream import MemoryFile, ciphertext_from_seed, ciphertext_words
from tests.support.helora_rings import coefficients, combined, product, times_small, transformed

NONCE, ID = bytes(range(32)), bytes(range(16))
A = np.array([[1, -2, 3, -4, 5], [-127, 0, 64, 1, -1]], dtype=np.int16)
KEYS = 2
"""Of a block whose site is five wide."""
CUT = 128
"""Of the direct mode, for A."""
_MODULI = np.array(PRIMES, dtype=np.int64)[:, np.newaxis]


def drawn(label: str, modulus: int, count: int = N) -> np.ndarray:
    """int64 [count] in [0, modulus): the document's V(label) modulo it."""
    stream = hashlib.shake_128(b"tensafe/helora/vector/" + label.encode()).digest(8 * count)
    return (np.frombuffer(stream, dtype="<u8") % np.uint64(modulus)).astype(np.int64)


def small(label: str) -> np.ndarray:
    """An error polynomial."""
    return drawn(label, 43) - 21


def ternary(label: str) -> np.ndarray:
    return drawn(label, 3) - 1


def seed(label: str) -> bytes:
    return hashlib.shake_128(b"tensafe/helora/vector/" + label.encode()).digest(64)


def element(use: int, index: int) -> np.ndarray:
    """`a` of a public key, int64 [4, N] in NTT form."""
    result = np.empty((4, N), dtype=np.int64)
    for level, prime in enumerate(KEY_PRIMES):
        place = b"tensafe/helora/2/public-element" + NONCE + bytes([use]) + ID + bytes([index, level])
        stream = hashlib.shake_128(place).digest(6 * N)
        words = np.frombuffer(stream, dtype="<u4") & np.uint32((1 << prime.bit_length()) - 1)
        result[level] = words[words < prime][:N]
    return result


def scaled(messages: np.ndarray) -> np.ndarray:
    """floor(Q m / t) modulo each prime: int64 [3, N]."""
    return np.array([[Q * int(one) // T % prime for one in messages] for prime in PRIMES], dtype=np.int64)


@dataclass(frozen=True)
class OtherKeyHolder:
    """Somebody else's key holder; all that it draws is V of a label that begins with `name`."""

    name: str
    use: int

    @property
    def secret(self) -> np.ndarray:
        return ternary(f"{self.name} s")

    def half(self, index: int) -> np.ndarray:
        """b of a public key, uint32 [4, N] in NTT form."""
        error = transformed(small(f"{self.name} key error {index}"))
        masked = product(element(self.use, index), transformed(self.secret)) + error
        return (-masked % np.array(KEY_PRIMES)[:, np.newaxis]).astype(np.uint32)

    def seed(self, index: int) -> bytes:
        return seed(f"{self.name} seed {index}")

    def second(self, index: int) -> np.ndarray:
        """c1: uint32 [3, N]."""
        file, nothing = MemoryFile(), np.ones((3, N), dtype=np.uint32)
        expanded = ciphertext_from_seed(nothing, self.seed(index), file)
        return ciphertext_words(file.saved(expanded))[1]

    def first(self, index: int, message: np.ndarray) -> np.ndarray:
        """c0 of an encryption of integers [N] below t: uint32 [3, N]."""
        hidden = times_small(self.second(index), self.secret) + small(f"{self.name} error {index}")
        return ((scaled(message) - hidden) % _MODULI).astype(np.uint32)

    def decrypted(self, words: np.ndarray) -> np.ndarray:
        """uint32 [2, 3, N] -> int64 [N], round(t (c0 + c1 s) / Q) modulo t."""
        residues = (words[0] + times_small(words[1], self.secret)) % _MODULI
        phase = combined(residues, PRIMES)
        return np.array([(2 * int(one) * T + Q) // (2 * Q) % T for one in phase], dtype=np.int64)


def hidden(
    sums: np.ndarray, held_back: np.ndarray, halves: np.ndarray, use: int, name: str, flood: int
) -> np.ndarray:
    """Somebody else's adapter holder: [2, 3, N] of products with A -> a row of a reply, uint32 [2, 3, N].

    Under each key an encryption of zero (b u + e1, a u + e2), a flood, and minus what is held back.
    """
    result = sums.astype(np.int64) % _MODULI
    for index, b in enumerate(halves):
        u = transformed(ternary(f"{name} u {index}"))
        for half, key in enumerate((b, element(use, index))):
            zero = coefficients(product(key, u))[:3] + small(f"{name} e{half + 1} {index}")
            result[half] = (result[half] + zero) % _MODULI
    result[0] += drawn(f"{name} flood", 2 * flood) - flood
    result[0] -= scaled(held_back)
    return (result % _MODULI).astype(np.uint32)


def combination(weights: np.ndarray, ciphertexts: np.ndarray) -> np.ndarray:
    """int [d_in] and uint32 [d_in, 2, 3, N] -> their sum with these weights, int64 [2, 3, N]."""
    return np.tensordot(weights.astype(np.int64), ciphertexts.astype(np.int64), axes=1) % _MODULI


def direct_products(a: np.ndarray, ciphertext: np.ndarray) -> np.ndarray:
    """A site of one chunk and one group: int64 [2, 3, N] of the ciphertext times the group's polynomial."""
    weights = np.zeros(N, dtype=np.int64)
    for i, row in enumerate(a):
        for k, weight in enumerate(row):
            weights[i * CUT + CUT - 1 - k] = weight
    return np.stack([times_small(half, weights) for half in ciphertext])
