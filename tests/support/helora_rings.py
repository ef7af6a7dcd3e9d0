"""The number-theoretic transform as SEAL orders it, in plain numpy; for attacks and for checks of keys."""

from __future__ import annotations

import functools

import numpy as np

from tensafe_gpu.helora.parameters import PRIMES, N
from tensafe_gpu.helora.seal_library import KEY_PRIMES


def transformed(polynomial: np.ndarray) -> np.ndarray:
    """Integers [N] -> int64 [4, N], modulo each of the four primes, in NTT form."""
    return np.stack([_forward((polynomial % prime).astype(np.int64), prime) for prime in KEY_PRIMES])


def coefficients(words: np.ndarray) -> np.ndarray:
    """[4, N] in NTT form -> int64 [4, N], coefficients modulo each of the four primes."""
    return np.stack(
        [_backward(row.astype(np.int64), prime) for row, prime in zip(words, KEY_PRIMES, strict=True)]
    )


def times_small(words: np.ndarray, polynomial: np.ndarray, primes: tuple[int, ...] = PRIMES) -> np.ndarray:
    """uint32 [primes, N] of coefficients times integers [N] in the ring: int64 [primes, N]."""
    result = np.empty(words.shape, dtype=np.int64)
    for level, prime in enumerate(primes):
        right = _forward((polynomial % prime).astype(np.int64), prime)
        left = _forward(words[level].astype(np.int64), prime)
        result[level] = _backward(left * right % prime, prime)
    return result


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of two elements in NTT form."""
    return a.astype(np.int64) * b.astype(np.int64) % np.array(KEY_PRIMES)[:, np.newaxis]


def combined(residues: np.ndarray, primes: tuple[int, ...] = KEY_PRIMES) -> np.ndarray:
    """[primes, n] -> Python integers [n] modulo the product of the primes."""
    modulus, total = int(np.prod(np.array(primes, dtype=object))), 0
    for row, prime in zip(residues, primes, strict=True):
        rest = modulus // prime
        total = total + row.astype(object) * (rest * pow(rest, -1, prime))
    return total % modulus


def _forward(values: np.ndarray, prime: int) -> np.ndarray:
    """Cooley-Tukey, natural order in, bit-reversed order out."""
    powers, blocks = roots(prime), 1
    while blocks < N:
        halves = values.reshape(blocks, 2, -1)
        turned = halves[:, 1] * powers[blocks : 2 * blocks, np.newaxis] % prime
        values = np.stack([halves[:, 0] + turned, halves[:, 0] - turned], axis=1) % prime
        blocks *= 2
    return values.reshape(N)


def _backward(values: np.ndarray, prime: int) -> np.ndarray:
    """The same steps undone, last first."""
    inverses, blocks = _inverses(prime), N // 2
    while blocks:
        halves = values.reshape(blocks, 2, -1)
        turned = (halves[:, 0] - halves[:, 1]) * inverses[blocks : 2 * blocks, np.newaxis]
        values = np.stack([halves[:, 0] + halves[:, 1], turned], axis=1) % prime
        blocks //= 2
    return values.reshape(N) * pow(N, -1, prime) % prime


@functools.cache
def roots(prime: int) -> np.ndarray:
    """Powers of the least primitive 2N-th root, in bit-reversed order: int64 [N]."""
    found = next(
        root
        for base in range(2, 1000)
        if pow(root := pow(base, (prime - 1) // (2 * N), prime), N, prime) == prime - 1
    )
    root = min(pow(found, 2 * k + 1, prime) for k in range(N))
    bits = N.bit_length() - 1
    return np.array([pow(root, int(f"{i:0{bits}b}"[::-1], 2), prime) for i in range(N)], dtype=np.int64)


@functools.cache
def _inverses(prime: int) -> np.ndarray:
    return np.array([pow(int(power), -1, prime) for power in roots(prime)], dtype=np.int64)
