"""The key holder's part of the online step: a masked integer vector goes out, a masked product comes back.

z = x_q + rho, y = A z - s, y - (A rho - s) = A x_q, exact modulo t. z is a one-time pad: uniform whatever x
is, as long as no index is used twice. The adapter holder's part is `evaluation.answered`.
"""

from __future__ import annotations

import numpy as np

from tensafe_gpu.helora import kernels
from tensafe_gpu.helora.frames import FrameError
from tensafe_gpu.helora.ports import NOT_FINITE, Float32Array, HeUnavailable
from tensafe_gpu.helora.quantise import Float64Array
from tensafe_gpu.helora.residues import Uint32Array


def token_scales(x: Float32Array, x_bound: int) -> Float64Array:
    """The scales of `quantise.quantised_tokens`: float32 [tokens, d_in], C-contiguous -> float64 [tokens].

    Raises HeUnavailable.
    """
    scales = np.empty(len(x))
    if not kernels.scales_of(x.view(np.int32), x_bound, scales):
        raise HeUnavailable(NOT_FINITE, "an activation is not finite")
    return scales


def masked(x: Float32Array, scales: Float64Array, rho: Uint32Array) -> Uint32Array:
    """float32 [tokens, d_in], its scales and masks -> its integers plus masks, uint32 below t."""
    z = np.empty(x.shape, dtype=np.uint32)
    kernels.mask(x, scales, rho, z)
    return z


def unmasked(
    y: Uint32Array, shares: Uint32Array, scales: Float64Array, into: Float32Array | None = None
) -> Float32Array:
    """uint32 [tokens, R], the shares of their places, and scales -> A_q x_q times the scale of each token:
    float32 [tokens, R], a new array or `into`.

    A product beyond float32 is infinite. Raises FrameError for a word that is not below t.
    """
    products = np.empty(y.shape, dtype=np.float32) if into is None else into
    if not kernels.unmask(y, shares, scales, products):
        raise FrameError("a masked word is not below t")
    return products
