"""Public keys of which the key holder chooses one half alone, and how many of them hide a reply.

A public key of BFV is (b, a) with b = -(a s + e). The adapter holder hides a reply with (b u + e1, a u + e2)
for its own ternary u: a u + e2 is pseudo-random whatever b is, but only if `a` is random (ring-LWE:
Lyubashevsky, Peikert, Regev, EUROCRYPT 2010). So `a` is no message: both sides expand it by SHAKE-128 from
the adapter holder's nonce and the key holder's id, and it is random if one of them follows the protocol.
(NewHope expands its `a` for the same reason: Alkim, Ducas, Pöppelmann, Schwabe, USENIX Security 2016.)
docs/helora.md says what follows for a key holder that sends any b and any ciphertexts.

SEAL samples every error: from its own key (b', a') comes b = b' + (a' - a) s = -(a s + e'), pointwise.
"""

from __future__ import annotations

import functools
import struct
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives import hashes

from tensafe_gpu.helora.parameters import N
from tensafe_gpu.helora.ports import PARAMETERS_REFUSED, HeUnavailable
from tensafe_gpu.helora.seal_library import KEY_PRIMES, seal, shared_context
from tensafe_gpu.helora.seal_stream import (
    MemoryFile,
    WordArray,
    public_key_from,
    public_key_words,
    secret_key_words,
)

NONCE_BYTES: Final = 32
"""Of the adapter holder, one for each connection."""
KEY_ID_BYTES: Final = 16
"""Of the key holder, drawn after it has the nonce."""
BLOCK_ID_BYTES: Final = KEY_ID_BYTES
"""A block's id is its keys'."""
BLOCK_KEY: Final = 1
DIRECT_KEY: Final = 2
"""What a key is for: an id of one use makes no element of the other."""
TERNARY_PER_ANSWER: Final = 17
"""Coefficients of u in what one answer can tell of a row: 3**17 < t < 3**18."""
_BITS_PER_WEIGHT: Final = 10
_BITS_PER_ANSWER: Final = 28
_DOMAIN: Final = b"tensafe/helora/2/public-element"
_PLACE: Final = struct.Struct(f"<{NONCE_BYTES}sB{KEY_ID_BYTES}sBB")
_DRAWN: Final = 3 * N // 2
"""Words per prime, of which N have to be below it: 4 of 5 are at the smallest, and too few once in 2**400."""


def keys_of_block(d_in: int) -> int:
    """How many keys hide each row of a reply of a site of this width.

    An answered token can tell a key holder that deviates 17 coefficients of u in place of 28 bits of A. Until
    the answers could have told A itself, at 10 bits a weight, N coefficients that it does not know are left.
    """
    answers = min(N, -(-_BITS_PER_WEIGHT * d_in // _BITS_PER_ANSWER))
    return 1 - (-TERNARY_PER_ANSWER * answers // N)


def common_elements(nonce: bytes, purpose: int, key_id: bytes, count: int) -> WordArray:
    """The `a` of `count` keys: uint32 [count, 4, N], each word uniform below its prime, in NTT form.

    Raises ValueError for a nonce or an id of another length, which would be padded.
    """
    if (len(nonce), len(key_id)) != (NONCE_BYTES, KEY_ID_BYTES):
        raise ValueError("a nonce has 32 bytes, a key's id 16")
    result = np.empty((count, len(KEY_PRIMES), N), dtype=np.uint32)
    for index in range(count):
        for level, prime in enumerate(KEY_PRIMES):
            result[index, level] = _below(prime, _PLACE.pack(nonce, purpose, key_id, index, level))
    return result


def halves(keys: Any, elements: WordArray, file: MemoryFile) -> WordArray:  # noqa: ANN401 - SEAL's own type
    """Key holder: the b of a SEAL KeyGenerator's secret key for these `a`, both uint32 [count, 4, N]."""
    primes = _primes().astype(np.uint64)
    secret = secret_key_words(file.saved(keys.secret_key())).astype(np.uint64)
    result = np.empty_like(elements)
    for index, element in enumerate(elements):
        key = seal.PublicKey()
        keys.create_public_key(key)
        b, a = public_key_words(file.saved(key)).astype(np.uint64)
        # Below 2**30 each: a product stays below 2**60.
        result[index] = (b + (a + primes - element) % primes * secret) % primes
    return result


def check_half(b: WordArray) -> None:
    """Of uint32 [..., 4, N] from the other side. Raises HeUnavailable for words out of range."""
    if not (b < _primes()).all():
        raise HeUnavailable(PARAMETERS_REFUSED, "a public key with words out of range")


def encryptors(b: WordArray, elements: WordArray, file: MemoryFile) -> list[Any]:
    """Adapter holder: a SEAL encryptor for each key (b, a), both uint32 [count, 4, N].

    Raises HeUnavailable for another shape, or words out of range; b may be anything else.
    """
    if b.shape != elements.shape:
        raise HeUnavailable(PARAMETERS_REFUSED, "public keys of another number")
    check_half(b)
    pairs = zip(b, elements, strict=True)
    return [seal.Encryptor(shared_context(), public_key_from(np.stack(pair), file)) for pair in pairs]


def _below(prime: int, place: bytes) -> WordArray:
    digest = hashes.Hash(hashes.SHAKE128(digest_size=4 * _DRAWN))
    digest.update(_DOMAIN + place)
    words = np.frombuffer(digest.finalize(), dtype="<u4") & np.uint32((1 << prime.bit_length()) - 1)
    below: WordArray = words[words < prime][:N]
    if len(below) < N:
        raise HeUnavailable(PARAMETERS_REFUSED, "a public element could not be drawn")
    return below


@functools.cache
def _primes() -> WordArray:
    """uint32 [4, 1]."""
    return np.array(KEY_PRIMES, dtype=np.uint32)[:, np.newaxis]
