"""Weaker parameters, malformed and transparent ciphertexts, other versions of SEAL's format: refused."""

from __future__ import annotations

import struct
import subprocess
import sys

import numpy as np
import pytest

from tensafe_gpu.helora import seal_memory
from tensafe_gpu.helora.evaluation import BlockEvaluation
from tensafe_gpu.helora.keystream import floods, new_key, ring_rows
from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.parameters import FLOOD, HONEST_NOISE, PRIMES, N, Q, T
from tensafe_gpu.helora.ports import GARBAGE, PARAMETERS_REFUSED, HeUnavailable
from tensafe_gpu.helora.residues import scaled_up
from tensafe_gpu.helora.seal_library import (
    KEY_PRIMES,
    check_ciphertext,
    new_context,
    seal,
    shared_context,
)
from tensafe_gpu.helora.seal_memory import WordReader
from tensafe_gpu.helora.seal_stream import (
    MemoryFile,
    SealFormatError,
    body_of,
    ciphertext_from,
    ciphertext_from_seed,
    ciphertext_words,
)
from tests.support.helora import halves_of

A = np.arange(-8, 8, dtype=np.int16).reshape(2, 8)


@pytest.fixture
def block() -> PreparingBlock:
    return PreparingBlock(8, 2)


def test_the_pinned_numbers_are_what_seal_makes() -> None:
    context = new_context()
    assert context.parameters_set()
    assert Q.bit_length() == 90
    assert KEY_PRIMES[:3] == PRIMES
    assert FLOOD + HONEST_NOISE <= Q // (2 * T)


@pytest.mark.parametrize(
    ("degree", "bits", "t"),
    [(4096, (30, 30, 30, 19), 1 << 27), (4096, (36, 36, 37), T), (2048, (30, 30, 30, 19), T),
     (8192, (30, 30, 30, 19), T), (4096, (40, 40, 40, 40), T)],
)  # fmt: skip
def test_other_parameters_are_refused(degree: int, bits: tuple[int, ...], t: int) -> None:
    with pytest.raises(HeUnavailable) as raised:
        new_context(degree, bits, t)
    assert raised.value.code == PARAMETERS_REFUSED


def test_seal_holds_the_parameters_to_128_bits() -> None:
    """The standard's table allows 109 bits of primes at this degree, which are all used."""
    context = new_context()
    level = context.key_context_data().qualifiers().sec_level
    assert level == seal.SEC_LEVEL_TYPE.TC128
    assert sum(prime.bit_length() for prime in KEY_PRIMES) == 109


def test_a_ciphertext_of_other_parameters_is_not_valid() -> None:
    """SEAL's own verdict, beside the ranges of words: of the same shape, under another plain modulus."""
    other = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    other.set_poly_modulus_degree(N)
    other.set_coeff_modulus(seal.CoeffModulus.Create(N, [30, 30, 30, 19]))
    other.set_plain_modulus(T // 2)
    context = seal.SEALContext(other, True, seal.SEC_LEVEL_TYPE.TC128)
    ciphertext = seal.Ciphertext()
    seal.Encryptor(context, seal.KeyGenerator(context).secret_key()).encrypt_zero_symmetric(ciphertext)
    assert not ciphertext.is_transparent()
    with pytest.raises(HeUnavailable, match="not valid") as raised:
        check_ciphertext(ciphertext)
    assert raised.value.code == PARAMETERS_REFUSED


def test_words_at_their_prime_are_refused(block: PreparingBlock) -> None:
    words, seeds = block.encrypted(0, 8)
    for level, prime in enumerate(PRIMES):
        wrong = words.copy()
        wrong[3, level, 17] = prime
        with pytest.raises(HeUnavailable) as raised:
            BlockEvaluation(A, *halves_of(block)).add(wrong, seeds)
        assert raised.value.code == PARAMETERS_REFUSED
    evaluation = BlockEvaluation(A, *halves_of(block))
    evaluation.add(words, seeds)
    with pytest.raises(HeUnavailable):
        evaluation.add(words[:1], seeds[:1])


@pytest.mark.parametrize("half", [0, 1])
def test_words_at_their_prime_are_refused_in_both_halves_of_whole_ciphertexts(
    block: PreparingBlock, half: int
) -> None:
    words = block.encrypted_whole(0, 8)
    for level, prime in enumerate(PRIMES):
        wrong = words.copy()
        wrong[3, half, level, 17] = prime
        with pytest.raises(HeUnavailable) as raised:
            BlockEvaluation(A, *halves_of(block)).add_whole(wrong)
        assert raised.value.code == PARAMETERS_REFUSED
    evaluation = BlockEvaluation(A, *halves_of(block))
    evaluation.add_whole(words)
    with pytest.raises(HeUnavailable):
        evaluation.add_whole(words[:1])


def test_a_transparent_ciphertext_is_refused(block: PreparingBlock) -> None:
    words = block.encrypted_whole(0, 8)
    words[5, 1] = 0
    with pytest.raises(HeUnavailable, match="transparent") as raised:
        BlockEvaluation(A, *halves_of(block)).add_whole(words)
    assert raised.value.code == PARAMETERS_REFUSED
    words[5, 1, 2, N - 1] = 1  # none of its words but the last: it is one all the same
    BlockEvaluation(A, *halves_of(block)).add_whole(words)


def test_a_public_key_out_of_range_is_refused(block: PreparingBlock) -> None:
    b, elements = halves_of(block)
    for wrong in (b | np.uint32(1 << 31), b[:, :3], b[:1]):
        with pytest.raises(HeUnavailable) as raised:
            BlockEvaluation(A, wrong, elements)
        assert raised.value.code == PARAMETERS_REFUSED


def test_a_transparent_reply_is_refused(block: PreparingBlock) -> None:
    words = np.ones((2, 2, len(PRIMES), N), dtype=np.uint32)
    words[:, 1] = 0
    with pytest.raises(HeUnavailable, match="not valid"):
        block.finish(words)


@pytest.mark.parametrize("shape", [(1, 2, 3, N), (2, 2, 3, N - 1)])
def test_a_reply_of_another_shape_is_refused(block: PreparingBlock, shape: tuple[int, ...]) -> None:
    with pytest.raises(HeUnavailable) as raised:
        block.finish(np.ones(shape, dtype=np.uint32))
    assert raised.value.code == GARBAGE


def test_a_reply_with_a_word_out_of_range_is_refused(block: PreparingBlock) -> None:
    words = np.ones((2, 2, 3, N), dtype=np.uint32)
    words[1, 1, 2, 5] = PRIMES[2]
    with pytest.raises(HeUnavailable) as raised:
        block.finish(words)
    assert raised.value.code == GARBAGE


def test_both_ways_of_reading_words_agree() -> None:
    context = shared_context()
    encryptor = seal.Encryptor(context, seal.KeyGenerator(context).secret_key())
    direct, stream, file = WordReader(direct=True), WordReader(direct=False), MemoryFile()
    kept, assert_direct = seal.Ciphertext(), WordReader().direct
    for _ in range(3):
        seeded = encryptor.encrypt_zero_symmetric()
        words, seed = stream.seeded(seeded)
        encryptor.encrypt_zero_symmetric(kept)  # one object again and again, with other words
        if assert_direct:
            assert np.array_equal(direct.words(kept), stream.words(kept))
            assert np.array_equal(direct.seeded(seeded)[0], words)
            assert direct.seeded(seeded)[1] == seed
            assert np.array_equal(direct.words(kept), stream.words(kept))
        whole = ciphertext_from_seed(words.astype(np.uint32), seed, file)
        check_ciphertext(whole)
        assert np.array_equal(stream.whole(whole)[0], words)
        assert np.array_equal(WordReader().second(whole), stream.whole(whole)[1])
        again = ciphertext_from(stream.whole(whole), file)
        assert np.array_equal(stream.whole(again), stream.whole(whole))


def test_an_object_that_looks_otherwise_is_not_read_from_memory() -> None:
    with pytest.raises((SealFormatError, OSError)):
        WordReader(direct=True).whole(seal.Plaintext())


def test_a_process_that_may_not_copy_reads_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> bytes:
        raise SealFormatError("not permitted")

    monkeypatch.setattr(seal_memory, "_read", forbidden)
    assert seal_memory._direct_reading_works.__wrapped__() is False


def test_other_stream_formats_are_refused() -> None:
    context = shared_context()
    encryptor = seal.Encryptor(context, seal.KeyGenerator(context).secret_key())
    ciphertext = seal.Ciphertext()
    encryptor.encrypt_zero_symmetric(ciphertext)
    stream = MemoryFile().saved(ciphertext)
    assert ciphertext_words(stream).shape == (2, 3, N)
    newer = stream[:3] + bytes([5]) + stream[4:]
    for wrong in (newer, stream[:-1], stream[:10], b"", stream[:5] + bytes([7]) + stream[6:]):
        with pytest.raises(SealFormatError):
            ciphertext_words(wrong)
    with pytest.raises(SealFormatError):
        body_of(struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 2, 0, 20) + b"nope")


def test_rows_of_a_table_come_again_from_any_place() -> None:
    key = new_key()
    for width in (1, 48, 50):
        table = ring_rows(key, 0, 64, width)
        assert table.max() < T
        for first, count in ((0, 1), (7, 3), (63, 1)):
            assert np.array_equal(ring_rows(key, first, count, width), table[first : first + count])
    assert not np.array_equal(ring_rows(new_key(), 0, 64, 48), ring_rows(key, 0, 64, 48))


def test_floods_fill_their_range_and_nothing_else() -> None:
    values = floods(200_000)
    assert values.min() >= -FLOOD
    assert values.max() < FLOOD
    assert abs(float(values.astype(np.float64).mean())) < 0.01 * FLOOD
    assert float(np.abs(values.astype(np.float64)).mean()) == pytest.approx(FLOOD / 2, rel=0.01)
    assert set(floods(1000, 3).tolist()) == {-3, -2, -1, 0, 1, 2}


def test_messages_are_scaled_as_the_definition_says() -> None:
    messages = np.random.default_rng(1).integers(0, T, 500).astype(np.uint32)
    messages[:4] = 0, 1, T - 1, T // 2
    for prime, got in zip(PRIMES, scaled_up(messages), strict=True):
        assert got.tolist() == [Q * int(m) // T % prime for m in messages]


def test_he_01_without_tenseal_nothing_stands_in_for_it() -> None:
    """HE-01: an earlier system used a substitute, or evaluated in the clear, without the library."""
    script = (
        "import sys; sys.modules['tenseal'] = None\n"
        "import tensafe_gpu.helora.ports\n"
        "import tensafe_gpu.helora.key_holder\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'tensafe[he]'" in done.stderr
