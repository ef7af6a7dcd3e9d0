"""Masks, shares and floods are AES-256-CTR, word for word: no other generator gives these values."""

from __future__ import annotations

import hashlib
import hmac
import os
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tensafe_gpu.helora.keystream import derived_key, floods, new_key, ring_rows
from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.parameters import FLOOD, N, T

KEY = bytes(range(32))
DIGEST = "fa365b0001fd3d0092cc15f74721521fb250ee934b61e6047de830355bfa4452"
"""SHA-256 of KEY's table of 4096 rows of 48, little-endian; as `openssl enc -aes-256-ctr` has it."""


def stream(key: bytes, first: int, blocks: int) -> bytes:
    """CTR written out: the encryptions of the counters from `first`, 16 bytes each, big-endian."""
    cipher = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - CTR by hand
    return b"".join(cipher.update((first + n).to_bytes(16, "big")) for n in range(blocks))


def row(key: bytes, number: int, width: int) -> list[int]:
    """A row of a table, which begins on a block of the cipher."""
    blocks = (width + 3) // 4
    return [word % T for word in struct.unpack(f"<{4 * blocks}I", stream(key, number * blocks, blocks))][
        :width
    ]


def drawn(key: bytes, count: int, bound: int) -> list[int]:
    """Floods: the upper bits of 64, as many as reach 2 bound - 1; what is beyond it is drawn again, in
    order, from where the stream stands.
    """
    words = iter(struct.unpack("<1024Q", stream(key, 0, 512)))
    values = [next(words) >> 64 - (2 * bound - 1).bit_length() for _ in range(count)]
    while wrong := [index for index, value in enumerate(values) if value >= 2 * bound]:
        for index in wrong:
            values[index] = next(words) >> 64 - (2 * bound - 1).bit_length()
    return [value - bound for value in values]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes were asked of the operating system, which answers KEY's, each time from the first."""
    sizes: list[int] = []

    def urandom(size: int) -> bytes:
        sizes.append(size)
        return KEY[:size]

    monkeypatch.setattr(os, "urandom", urandom)
    return sizes


@pytest.mark.parametrize(("first", "count", "width"), [(0, 3, 4), (7, 5, 6), (4090, 6, 49), (0, 1, 1)])
def test_rows_are_the_cipher_s_words(first: int, count: int, width: int) -> None:
    wanted = [row(KEY, number, width) for number in range(first, first + count)]
    assert ring_rows(KEY, first, count, width).tolist() == wanted


def test_known_rows_of_a_known_key() -> None:
    rows = ring_rows(KEY, 0, N, 48)
    assert rows[0, :4].tolist() == [100700402, 10438954, 177927081, 7810781]
    assert rows[4095, 44:].tolist() == [89636786, 227327988, 244507358, 126636420]
    assert hashlib.sha256(rows.astype("<u4").tobytes()).hexdigest() == DIGEST


def test_a_derived_key_is_hkdf_of_its_parts_with_their_lengths() -> None:
    """RFC 5869 written out, for one block of output."""
    info = b"tensafe/helora/1" + b"\0\0\0\x05basis" + b"\0\0\0\x0223" + b"\0\0\0\x01\xff"
    wanted = hmac.digest(hmac.digest(bytes(32), KEY, "sha256"), info + b"\x01", "sha256")
    assert derived_key(KEY, "basis", 23, b"\xff") == wanted
    assert wanted.hex() == "1d0a976dc4adb57f54bad54ce47ae1204658212871da7ed3c777779c440fa316"
    assert derived_key(KEY, "basis2", 3, b"\xff") != wanted


def test_a_key_is_the_operating_system_s(asked: list[int]) -> None:
    assert new_key() == KEY
    assert asked == [32]


@pytest.mark.parametrize(("count", "bound"), [(40, FLOOD), (40, 3), (40, 1 << 58)])
def test_floods_are_the_cipher_s_words_under_a_key_of_the_operating_system_s(
    asked: list[int], count: int, bound: int
) -> None:
    assert floods(count, bound).tolist() == drawn(KEY, count, bound)
    assert asked == [32]


def test_known_floods_of_a_known_key(asked: list[int]) -> None:
    assert floods(4).tolist() == [
        1452817984100133915,
        8844123754529993,
        1831151173452947291,
        -1202654023048673912,
    ]


def test_each_call_of_floods_has_a_key_of_its_own() -> None:
    """Also where a generator of the process was seeded."""
    seen = []
    for _ in range(2):
        np.random.seed(1)
        seen.append(floods(64).tolist())
    assert seen[0] != seen[1]


def test_a_block_is_masked_by_the_rows_of_a_key_of_the_operating_system_s(asked: list[int]) -> None:
    block = PreparingBlock(6, 2)
    assert asked == [16, 32]
    assert block.block_id == KEY[:16]
    assert block._rho[:, 7].tolist() == row(KEY, 7, 6)
    block.close()
