"""Public keys: their second half is nobody's choice, their first is SEAL's own sampling."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.parameters import MAX_D_IN, N, T
from tensafe_gpu.helora.ports import PARAMETERS_REFUSED, HeUnavailable
from tensafe_gpu.helora.public_keys import (
    BLOCK_KEY,
    DIRECT_KEY,
    TERNARY_PER_ANSWER,
    common_elements,
    encryptors,
    keys_of_block,
)
from tensafe_gpu.helora.seal_library import KEY_PRIMES
from tensafe_gpu.helora.seal_stream import MemoryFile
from tests.support.helora_attacks import ternary_key
from tests.support.helora_rings import coefficients, combined, product, transformed

NONCE, KEY_ID = bytes(range(32)), bytes(range(16))
VECTOR = "8ac963083798f26b71fb93bdf60cd5b1e6878ce01671e23ab73cdc92531b71f4"


def test_elements_have_these_words() -> None:
    """A vector for other implementations: docs/helora-wire.md says how they are drawn."""
    elements = common_elements(NONCE, BLOCK_KEY, KEY_ID, 2)
    assert elements[0, 0, :3].tolist() == [88266880, 225329305, 245470881]
    place = b"tensafe/helora/2/public-element" + NONCE + bytes([BLOCK_KEY]) + KEY_ID + bytes([1, 3])
    drawn = np.frombuffer(hashlib.shake_128(place).digest(40_000), dtype="<u4") & 0x7FFFF
    assert np.array_equal(elements[1, 3], drawn[drawn < 417793][:N])
    assert hashlib.sha256(elements.astype("<u4").tobytes()).hexdigest() == VECTOR


def test_whatever_changes_gives_other_elements() -> None:
    first = common_elements(NONCE, BLOCK_KEY, KEY_ID, 3)
    assert np.array_equal(first[:1], common_elements(NONCE, BLOCK_KEY, KEY_ID, 1))
    others = [
        common_elements(bytes(32), BLOCK_KEY, KEY_ID, 1),
        common_elements(NONCE, DIRECT_KEY, KEY_ID, 1),
        common_elements(NONCE, BLOCK_KEY, bytes(16), 1),
        first[1:2],
        first[2:],
    ]
    for other in others:  # words agree by chance alone: of 16,384 one in 417,793, or in 2**30
        assert int((first[0] == other[0]).sum()) < 4


@pytest.mark.parametrize("nonce", [bytes(32), b"\xff" * 32, NONCE])
def test_no_nonce_makes_elements_with_a_structure(nonce: bytes) -> None:
    """What an adapter holder sends is hashed: a constant `a`, say, would tell it the secret key from b."""
    elements = common_elements(nonce, BLOCK_KEY, KEY_ID, 8)
    for level, prime in enumerate(KEY_PRIMES):
        words = elements[:, level].ravel().astype(np.int64)
        assert int(words.max()) < prime
        counts = np.bincount(words * 64 // prime, minlength=64)
        expected = words.size / 64
        assert (
            float(((counts - expected) ** 2 / expected).sum()) < 140
        )  # chi-square, 63 degrees: p about 1e-7
        assert len(np.unique(words)) > 0.95 * min(words.size, prime)
        left, right = words[:-1] / prime - 0.5, words[1:] / prime - 0.5
        assert abs(float((left * right).mean())) * 12 < 0.03


def test_nonces_and_ids_of_another_length_are_refused() -> None:
    for nonce, key_id in ((b"", KEY_ID), (NONCE[:-1], KEY_ID), (NONCE + b"0", KEY_ID), (NONCE, KEY_ID[:-1])):
        with pytest.raises(ValueError, match="32 bytes"):
            common_elements(nonce, BLOCK_KEY, key_id, 1)


def test_a_half_completes_its_element_to_a_key_of_seals_own_errors() -> None:
    """b + a s is minus the error that SEAL drew, small and the same modulo every prime, for each key anew."""
    block = PreparingBlock(64, 2)
    elements = common_elements(NONCE, BLOCK_KEY, block.block_id, keys_of_block(64))
    secret, errors = transformed(ternary_key(block)), []
    for b, a in zip(block.public_halves(NONCE), elements, strict=True):
        left = (b.astype(np.int64) + product(a, secret)) % np.array(KEY_PRIMES)[:, np.newaxis]
        modulus = int(np.prod(np.array(KEY_PRIMES, dtype=object)))
        error = combined(coefficients(left))
        error = np.where(error > modulus // 2, error - modulus, error).astype(np.float64)
        assert np.abs(error).max() <= 21
        assert 3 < float(error.std()) < 3.5  # SEAL's 3.2
        errors.append(error)
    assert len(errors) == 2
    assert abs(float(np.corrcoef(errors[0], errors[1])[0, 1])) < 0.1


@pytest.mark.parametrize("d_in", [1, 64, 512, 896, 1536, 4096, 12_000, MAX_D_IN])
def test_what_answers_can_tell_of_the_keys_is_more_than_a_row_of_the_adapter(d_in: int) -> None:
    assert 3**TERNARY_PER_ANSWER < T < 3 ** (TERNARY_PER_ANSWER + 1)
    answers = min(N, -(-10 * d_in // 28))
    left = N * keys_of_block(d_in) - TERNARY_PER_ANSWER * answers
    assert N <= left < 2 * N


@pytest.mark.parametrize("level", range(4))
def test_halves_with_words_out_of_range_are_refused(level: int) -> None:
    elements, file = common_elements(NONCE, BLOCK_KEY, KEY_ID, 2), MemoryFile()
    b = np.zeros_like(elements)
    assert len(encryptors(b, elements, file)) == 2  # nothing else is asked of it
    b[1, level, 7] = KEY_PRIMES[level]
    for wrong in (b, b[:1], b[:, :3]):
        with pytest.raises(HeUnavailable) as raised:
            encryptors(wrong, elements, file)
        assert raised.value.code == PARAMETERS_REFUSED
