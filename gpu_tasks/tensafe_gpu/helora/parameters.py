"""The one set of parameters that both sides use; anything else is refused.

BFV, ring Z_Q[X]/(X^4096 + 1). Three primes of 30 bits carry data (Q about 2^90); SEAL reserves the fourth for
key switching, which is not used here, so it is small. log2 of all four together is 109, the most that
SEAL's table (that of the homomorphic encryption standard) allows at 128 bits and this degree.

Noise budget: Delta = Q/t is about 2^62, so a reply decrypts exactly while its noise stays below Delta/2 =
2^61. The flood takes all of that but HONEST_NOISE, a bound (not an estimate) of what an honest reply holds
besides: |A e| <= 21 * L1(A) < 2^25, |Enc_pk(0)| < 2^18 for each of at most 18 keys, rounding < 2^22. So a
decryption never fails, and the noise of A e is hidden to 2^-37 (worst case; 2^-48 for typical rows).
"""

from __future__ import annotations

from typing import Final

N: Final = 4096
"""Ring degree; also tokens per block of preprocessing."""
PRIMES: Final = (1073651713, 1073668097, 1073692673)
PRIME_BITS: Final = (30, 30, 30, 19)
Q: Final = PRIMES[0] * PRIMES[1] * PRIMES[2]
T_BITS: Final = 28
T: Final = 1 << T_BITS
"""Plain modulus. A power of two: coefficients are packed plainly, without batching."""
HONEST_NOISE: Final = 1 << 26
FLOOD: Final = Q // (2 * T) - HONEST_NOISE
"""Floods are uniform in [-FLOOD, FLOOD)."""
MAX_L1: Final = 1 << 20
"""Largest sum of magnitudes of one row of A_q: keeps A e below 2^25 and every float64 sum below 2^53."""
MAX_D_IN: Final = 1 << 16
MAX_ROWS: Final = 1 << 12
MAX_RANK: Final = 128
"""Of one module: no adapter holder publishes more, and no key holder opens more."""
MAX_TOKENS: Final = N
"""Of all ranges of one request for products: more than a forward pass has (sampler/launch.py)."""
PARAMETERS: Final = "bfv/n4096/q30.30.30.19/t28/flood-gap/tc128/1"
"""Said by both sides before anything else, and signed in attestations."""
