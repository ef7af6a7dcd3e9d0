"""What the arithmetic of the protocol alone would take, by primitives timed in the same run.

Counted are the transforms, products and keystreams that no implementation of this protocol on these
parameters can leave out; not sampling errors, copies, checks, logs and connections. One transform is SEAL's
own (N = 4096, one prime of 30 bits, scalar code), a product numpy's in float64, a keystream AES-256-CTR.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tensafe_gpu.helora.keystream import new_key, ring_rows
from tensafe_gpu.helora.messages import ROWS_PER_FRAME
from tensafe_gpu.helora.parameters import PRIMES, N
from tensafe_gpu.helora.public_keys import keys_of_block
from tensafe_gpu.helora.seal_library import seal, shared_context

_REPEATS = 15
_LEVELS = len(PRIMES)
_WORD_BYTES = 4


@dataclass(frozen=True, slots=True)
class Primitives:
    """Seconds of processor time: a transform, a multiply-add of a product, a byte of keystream."""

    transform_s: float
    product_s: float
    keystream_s: float


def primitives(rows: int, d_in: int) -> Primitives:
    """Of this core; the product is that of A [rows, d_in] with the words of a frame of ciphertexts."""
    rng = np.random.default_rng(3)
    context = shared_context()
    ciphertext = seal.Ciphertext()
    seal.Encryptor(context, seal.KeyGenerator(context).secret_key()).encrypt_zero_symmetric(ciphertext)
    evaluator, transforms = seal.Evaluator(context), 2 * _LEVELS

    def there_and_back() -> None:
        evaluator.transform_to_ntt_inplace(ciphertext)
        evaluator.transform_from_ntt_inplace(ciphertext)

    a = rng.integers(-127, 128, (rows, ROWS_PER_FRAME)).astype(np.float64)
    words = rng.integers(0, PRIMES[0], (ROWS_PER_FRAME, transforms * N)).astype(np.float64)
    key = new_key()
    return Primitives(
        _median_s(there_and_back) / (2 * transforms),
        _median_s(lambda: a @ words) / (a.size * words.shape[1]),
        _median_s(lambda: ring_rows(key, 0, 64, d_in)) / (64 * d_in * _WORD_BYTES),
    )


def site_token_s(d_in: int, rows: int, by: Primitives) -> float:
    """Seconds of one token at a site, both parties: a 4096th of its block, and online."""
    keys = keys_of_block(d_in)
    # Key holder: one polynomial for each feature, one back for each row. Adapter holder: for each row and key
    # the ternary u and both errors, which carry flood and share.
    transforms = _LEVELS * (d_in + rows + 3 * keys * rows)
    products = rows * d_in * 2 * _LEVELS * N
    # The masks, and the uniform half of each ciphertext, which both sides draw.
    stream_bytes = d_in * N * _WORD_BYTES * (1 + 2 * _LEVELS)
    block_s = transforms * by.transform_s + products * by.product_s + stream_bytes * by.keystream_s
    online_s = rows * d_in * by.product_s + (d_in + rows) * _WORD_BYTES * by.keystream_s
    return block_s / N + online_s


def _median_s(act: Callable[[], object]) -> float:
    act()
    seconds = []
    for _ in range(_REPEATS):
        began = time.thread_time()
        act()
        seconds.append(time.thread_time() - began)
    return float(np.median(seconds))
