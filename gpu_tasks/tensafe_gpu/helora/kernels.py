"""The key holder's inner loops, compiled by numba: one pass over memory where numpy takes several.

Integers alone decide what goes over the wire, and each loop has numpy's result bit for bit: the functions of
`quantise` and `residues` that they stand for are what the tests hold them to. Only the key holder imports
this: numba comes with vLLM, and an adapter holder needs neither. Compiled when this module is imported, which
takes a second; nothing is kept on disk, where numba would not see that a constant has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar, cast

import numpy as np

from tensafe_gpu.helora.parameters import PRIMES, T_BITS, N, T
from tensafe_gpu.helora.residues import FACTORS, Q_MOD_T, QUOTIENTS

try:
    import numba
    from numba import types
except ImportError as error:
    raise ImportError("a key holder needs numba: pip install 'tensafe[sampler]'") from error

F = TypeVar("F", bound=Callable[..., Any])


def _compiled(signature: object, *, nogil: bool = False) -> Callable[[F], F]:
    """For C-contiguous arrays of exactly these types. `nogil`: where others gain more than that costs."""
    return cast("Callable[[F], F]", numba.njit(signature, nogil=nogil))


_read = partial(types.Array, layout="C", readonly=True)
_write = partial(types.Array, layout="C")

_LARGEST: Final = np.int32(0x7FFFFFFF)
_NOT_FINITE: Final = np.int32(0x7F800000)
_MASK: Final = np.uint32(T - 1)
_UNUSED_BITS: Final = np.uint32(32 - T_BITS)
_UNUSED_BITS_SIGNED: Final = np.int32(32 - T_BITS)
_MASK_WIDE: Final = np.uint64(T - 1)
_Q_MOD_T: Final = np.uint64(Q_MOD_T)
_HALF: Final = np.uint64(32)
_LEVELS: Final = tuple(tuple(map(np.uint64, level)) for level in zip(PRIMES, FACTORS, QUOTIENTS, strict=True))


@_compiled(types.boolean(_read(types.int32, 2), types.float64, _write(types.float64, 1)))
def scales_of(bits: np.ndarray, x_bound: float, scales: np.ndarray) -> bool:
    """The scale of each token: the largest magnitude over `x_bound`; False if a number is not finite.

    `bits` are those of float32 [tokens, d_in], as int32: without their sign they are in the numbers' order.
    """
    for token in range(bits.shape[0]):
        largest = np.int32(0)
        for j in range(bits.shape[1]):
            largest = max(largest, bits[token, j] & _LARGEST)
        if largest >= _NOT_FINITE:
            return False
        scales[token] = np.float64(np.int32(largest).view(np.float32)) / x_bound
    return True


@_compiled(
    types.void(
        _read(types.float32, 2), _read(types.float64, 1), _read(types.uint32, 2), _write(types.uint32, 2)
    )
)
def mask(x: np.ndarray, scales: np.ndarray, rho: np.ndarray, z: np.ndarray) -> None:
    """z = rint(x / scale) + rho modulo t: float32 [tokens, d_in], float64 [tokens], uint32 [tokens, d_in]."""
    for token in range(x.shape[0]):
        divisor = scales[token] if scales[token] > 0.0 else 1.0
        for j in range(x.shape[1]):
            integer = np.int32(np.rint(np.float64(x[token, j]) / divisor))
            z[token, j] = (np.uint32(integer) + rho[token, j]) & _MASK


@_compiled(
    types.boolean(
        _read(types.uint32, 2), _read(types.uint32, 2), _read(types.float64, 1), _write(types.float32, 2)
    )
)
def unmask(y: np.ndarray, shares: np.ndarray, scales: np.ndarray, products: np.ndarray) -> bool:
    """products = scale * (y - share, centred modulo t), float32 [tokens, R]; False if a word of y is not
    below t.
    """
    together = np.uint32(0)
    for token in range(y.shape[0]):
        for row in range(y.shape[1]):
            word = y[token, row]
            together |= word
            difference = np.int32((word - shares[token, row]) << _UNUSED_BITS) >> _UNUSED_BITS_SIGNED
            products[token, row] = np.float32(difference * scales[token])
    return bool(together <= _MASK)


@_compiled(types.void(_read(types.uint64, 2), _read(types.uint32, 1), _write(types.uint32, 2)), nogil=True)
def hide(zero: np.ndarray, message: np.ndarray, hidden: np.ndarray) -> None:
    """The first polynomial of an encryption of zero, uint64 [3, N], into that of a message, uint32 [N]
    below t: uint32 [3, N]. As `residues.scaled_up` and `residues.added`.
    """
    for level in range(3):
        prime, factor, shoup = _LEVELS[level]
        for n in range(N):
            rest = (np.uint64(message[n]) * _Q_MOD_T) & _MASK_WIDE
            scaled = rest * factor - ((rest * shoup) >> _HALF) * prime
            scaled = min(scaled, scaled - prime)
            word = zero[level, n] + scaled
            hidden[level, n] = np.uint32(min(word, word - prime))
