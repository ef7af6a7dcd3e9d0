"""Arithmetic modulo the three primes, vectorised and exact: float64 products of integers below 2**53."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from tensafe_gpu.helora.parameters import PRIMES, Q, T

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Uint32Array = npt.NDArray[np.uint32]
Uint64Array = npt.NDArray[np.uint64]

Q_MOD_T: Final = Q % T
FACTORS: Final = tuple(-pow(T, -1, prime) % prime for prime in PRIMES)
QUOTIENTS: Final = tuple((factor << 32) // prime for factor, prime in zip(FACTORS, PRIMES, strict=True))
"""Of Shoup's products with FACTORS: see `scaled_up`."""


def below_primes(words: Uint32Array) -> bool:
    """Whether every word of uint32 [..., 3, N] is below its prime."""
    return all(bool((words[..., level, :] < prime).all()) for level, prime in enumerate(PRIMES))


def reduced(values: Float64Array, prime: int) -> Float64Array:
    """float64 integers, |v| < 2**53, into [0, prime), in place."""
    quotient = np.floor(values * (1.0 / prime))
    quotient *= prime
    values -= quotient
    # The product with the inverse may be off by one at a multiple.
    values[values < 0] += prime
    values[values >= prime] -= prime
    return values


def scaled_up(messages: Uint32Array) -> Iterator[Uint64Array]:
    """floor(Q m / t) modulo each prime: uint64 in [0, prime), of uint32 messages below t, any shape.

    What turns a zero into an encryption of m; SEAL rounds where this takes the floor, which costs a noise
    of at most one. Q m = t floor(Q m / t) + c with c = Q m mod t, and Q is 0 modulo the prime: the residue
    is -c / t. A product with a constant w modulo p, by Shoup's quotient floor(w 2^32 / p): Harvey, arXiv
    1205.2926, section 3. A yielded array is overwritten by the next one.
    """
    rest = messages * np.uint64(Q_MOD_T)
    rest &= np.uint64(T - 1)
    quotient, result = np.empty_like(rest), np.empty_like(rest)
    for prime, factor, shoup in zip(PRIMES, FACTORS, QUOTIENTS, strict=True):
        np.multiply(rest, np.uint64(shoup), out=quotient)
        quotient >>= np.uint64(32)
        quotient *= np.uint64(prime)
        np.multiply(rest, np.uint64(factor), out=result)
        result -= quotient
        yield _below(result, prime)


def _below(values: Uint64Array, prime: int) -> Uint64Array:
    """uint64 in [0, 2 prime) into [0, prime), in place: of v and v - prime (which wraps if negative) the
    less.
    """
    np.minimum(values, values - np.uint64(prime), out=values)
    return values


def added(words: Uint32Array, summand: Uint64Array, prime: int) -> Uint32Array:
    """(words + summand) modulo the prime, both in [0, prime)."""
    return _below(words + summand, prime).astype(np.uint32)


def centred_mod_t(values: Uint32Array | Int64Array) -> Int64Array:
    """Residues modulo t as int64 in [-t/2, t/2)."""
    result = values.astype(np.int64) & (T - 1)
    result -= (result >= T // 2) * T
    return result
