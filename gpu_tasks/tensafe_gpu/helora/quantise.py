"""Integers for A and for activations, so that the protocol can be exact, and what rounding costs.

A token's sum stays inside (-t/2, t/2) because the bound on its integers follows from A's rows: x_bound =
(t/2 - 1) / max_i sum_j |a_ij|. More bits for A leave fewer for x; each site takes the split with the least
error.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np
import numpy.typing as npt

from tensafe.contracts.errors import InvalidRequest
from tensafe_gpu.helora.parameters import MAX_L1, T
from tensafe_gpu.helora.ports import NOT_FINITE, Float32Array, HeUnavailable

Float64Array = npt.NDArray[np.float64]
Int16Array = npt.NDArray[np.int16]

A_BITS: Final = (8, 9, 10)
MAX_X_BOUND: Final = 1 << 15
CREST: Final = 8.0
"""Assumed ratio of a token's largest activation to their root mean square, for the choice alone."""
_ROOT_12: Final = 12**0.5
_FEW: Final = 32


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """A of a site: `a` int16 [R, d_in], row i stands for scales[i] * a[i]; errors relative, root mean square.

    `error_a` is measured on these rows; `error_x` is what the bound on x costs at a crest factor of CREST.
    """

    a: Int16Array
    scales: Float64Array
    bits: int
    x_bound: int
    error_a: float
    error_x: float


def quantised_rows(rows: Float64Array) -> QuantisedRows:
    """float64 [R, d_in], finite -> integers of 8 to 10 bits, whichever split has the least error.

    Raises InvalidRequest for values that are not finite, or so many columns that no split fits.
    """
    if not np.isfinite(rows).all():
        raise InvalidRequest("the adapter has weights that are not finite", field="lora_A")
    candidates = [candidate for bits in A_BITS if (candidate := _with_bits(rows, bits)) is not None]
    if not candidates:
        raise InvalidRequest("a module has more inputs than the protocol's integers can sum", field="lora_A")
    return min(candidates, key=lambda one: one.error_a**2 + one.error_x**2)


def _with_bits(rows: Float64Array, bits: int) -> QuantisedRows | None:
    top = (1 << (bits - 1)) - 1
    scales = np.abs(rows).max(axis=1) / top
    safe = np.where(scales > 0, scales, 1.0)
    a = np.rint(rows / safe[:, np.newaxis])
    l1 = int(np.abs(a).sum(axis=1).max())
    if l1 > MAX_L1:
        return None
    x_bound = min(MAX_X_BOUND, (T // 2 - 1) // max(l1, 1))
    power = float((rows**2).sum())
    lost = float(((a * safe[:, np.newaxis] - rows) ** 2).sum())
    error_a = (lost / power) ** 0.5 if power else 0.0
    return QuantisedRows(a.astype(np.int16), scales, bits, x_bound, error_a, CREST / (x_bound * _ROOT_12))


def quantised_tokens(x: Float32Array, x_bound: int) -> tuple[npt.NDArray[np.int32], Float64Array]:
    """float32 [tokens, d_in] -> int32 of magnitude <= x_bound, and the scale of each token, float64 [tokens].

    A token's integers depend on that token alone, so batching changes nothing. Raises HeUnavailable.
    """
    largest = np.maximum.reduce(np.abs(x), axis=1)  # exact in float32, in half the memory of float64
    scales = largest.astype(np.float64) / x_bound
    few = scales.tolist() if len(scales) <= _FEW else None  # numpy's calls cost more than these
    if not (all(map(isfinite, few)) if few is not None else np.isfinite(scales).all()):
        raise HeUnavailable(NOT_FINITE, "an activation is not finite")
    divisors = (
        scales if (all(few) if few is not None else scales.all()) else np.where(scales > 0, scales, 1.0)
    )
    wide = np.divide(x, divisors[:, np.newaxis], dtype=np.float64)
    return np.rint(wide, out=wide).astype(np.int32), scales


def dequantised(sums: npt.NDArray[np.int64], scales: Float64Array) -> Float32Array:
    """A_q x_q int64 [tokens, R] times each token's scale: float32 [tokens, R].

    A product beyond float32 is infinite. numpy warns of it, since to ask it not to would cost every round.
    """
    return (sums * scales[:, np.newaxis]).astype(np.float32)
