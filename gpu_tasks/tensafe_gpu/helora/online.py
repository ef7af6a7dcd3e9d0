"""The online step: a masked integer vector goes out, a masked product comes back, exact modulo t.

z = x_q + rho, y = A z - s, y - (A rho - s) = A x_q. z is a one-time pad: uniform whatever x is, as long as
no index is used twice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tensafe_gpu.helora.masks import PreparedBlock
from tensafe_gpu.helora.parameters import T
from tensafe_gpu.helora.quantise import Float64Array
from tensafe_gpu.helora.residues import Int64Array, Uint32Array, centred_words

_MASK = np.uint32(T - 1)


def masked(x_q: npt.NDArray[np.int32], rho: Uint32Array) -> Uint32Array:
    """Key holder: int32 [tokens, d_in] and its masks -> uint32 below t."""
    z = x_q.view(np.uint32) + rho
    z &= _MASK
    return z


def answered(a_columns: Float64Array, z: Uint32Array, shares: Uint32Array) -> Uint32Array:
    """Adapter holder: A float64 [d_in, R], z uint32 [tokens, d_in] below t, its rows of s -> below t.

    Sums stay below 2**20 * 2**28: exact in float64.
    """
    sums = (z.astype(np.float64) @ a_columns).astype(np.int64)
    return (sums.astype(np.uint32) - shares) & _MASK


def unmasked(y: Uint32Array, block: PreparedBlock, first: int) -> Int64Array:
    """Key holder: uint32 [tokens, R] below t -> A_q x_q, int64 [tokens, R]."""
    return centred_words(y - block.shares[first : first + len(y)])
