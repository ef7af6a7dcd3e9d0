"""A block and a direct request in numbers (docs/helora-wire.md): somebody else's program against each side.

The other program is `tests/support/helora_vectors.py`, which has none of the project's arithmetic.
"""

from __future__ import annotations

import functools
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from tensafe_gpu.helora import seal_stream
from tensafe_gpu.helora.direct import DIRECT_FLOOD, DirectRequest, DirectSite, layout_of
from tensafe_gpu.helora.evaluation import BlockEvaluation
from tensafe_gpu.helora.keystream import new_key, ring_rows
from tensafe_gpu.helora.masks import PreparingBlock
from tensafe_gpu.helora.parameters import FLOOD, N, T
from tensafe_gpu.helora.ports import HeUnavailable
from tensafe_gpu.helora.public_keys import BLOCK_KEY, DIRECT_KEY, common_elements, keys_of_block
from tensafe_gpu.helora.seal_library import KEY_PRIMES, seal, shared_context
from tests.project_files import ROOT
from tests.support.helora_rings import roots, transformed
from tests.support.helora_vectors import (
    CUT,
    ID,
    KEYS,
    NONCE,
    A,
    OtherKeyHolder,
    combination,
    direct_products,
    drawn,
    element,
    hidden,
    seed,
)

ROWS, D_IN = A.shape
X_Q = np.array([-8, 2, 4, -2, 0])
"""Of the document's token."""
BLOCK, DIRECT = OtherKeyHolder("block", BLOCK_KEY), OtherKeyHolder("direct", DIRECT_KEY)


@functools.cache
def rho() -> np.ndarray:
    return np.stack([drawn(f"rho {j}", T) for j in range(D_IN)])


@functools.cache
def shares() -> np.ndarray:
    return np.stack([drawn(f"share {r}", T) for r in range(ROWS)])


@functools.cache
def halves() -> np.ndarray:
    return np.stack([BLOCK.half(index) for index in range(KEYS)])


@functools.cache
def ciphertexts() -> np.ndarray:
    """uint32 [d_in, 2, 3, N]."""
    return np.stack([np.stack([BLOCK.first(j, rho()[j]), BLOCK.second(j)]) for j in range(D_IN)])


@functools.cache
def reply() -> np.ndarray:
    """uint32 [R, 2, 3, N]."""
    sums = [combination(row, ciphertexts()) for row in A]
    rows = [hidden(one, shares()[r], halves(), BLOCK_KEY, f"reply {r}", FLOOD) for r, one in enumerate(sums)]
    return np.stack(rows)


def products_of_masks() -> np.ndarray:
    """A rho - s modulo t: int64 [R, N]."""
    return (A.astype(np.int64) @ rho() - shares()) % T


@functools.cache
def direct_ciphertext() -> np.ndarray:
    message = np.zeros(N, dtype=np.int64)
    message[:D_IN] = X_Q % T
    return np.stack([DIRECT.first(0, message), DIRECT.second(0)])


@functools.cache
def direct_reply() -> np.ndarray:
    held_back = drawn("direct share", T)
    held_back[[CUT - 1, 2 * CUT - 1]] = 0
    sums, half = direct_products(A, direct_ciphertext()), DIRECT.half(0)[np.newaxis]
    return hidden(sums, held_back, half, DIRECT_KEY, "direct reply", DIRECT_FLOOD)[np.newaxis]


VECTORS = {
    "b of the block's keys, u32[2, 4, N]": halves,
    "c0 of its features, u32[5, 3, N]": lambda: ciphertexts()[:, 0],
    "their c1, u32[5, 3, N]": lambda: ciphertexts()[:, 1],
    "its reply, u32[2, 2, 3, N]": reply,
    "what that decrypts to, u32[2, N]": products_of_masks,
    "b of the direct key, u32[4, N]": lambda: DIRECT.half(0),
    "c0 of its chunk, u32[3, N]": lambda: direct_ciphertext()[0],
    "c1 of its chunk, u32[3, N]": lambda: direct_ciphertext()[1],
    "its answer, u32[1, 2, 3, N]": direct_reply,
}


@pytest.mark.parametrize("name", VECTORS)
def test_the_document_has_these_words(name: str) -> None:
    words = VECTORS[name]().astype("<u4")
    first, digest = ", ".join(map(str, words.ravel()[:3])), hashlib.sha256(words.tobytes()).hexdigest()
    text = (ROOT / "docs" / "helora-wire.md").read_text(encoding="utf-8")
    assert f"| {name} | {first} | `{digest}` |" in text


def test_what_is_drawn_alone_is_drawn_as_the_document_says() -> None:
    assert keys_of_block(D_IN) == KEYS
    cut = layout_of(D_IN, ROWS)
    assert (cut.chunk, cut.chunks, cut.groups) == (CUT, 1, 1)
    for use, count in ((BLOCK_KEY, KEYS), (DIRECT_KEY, 1)):
        theirs = np.stack([element(use, index) for index in range(count)])
        assert np.array_equal(common_elements(NONCE, use, ID, count), theirs)


def test_a_transform_is_as_the_document_says() -> None:
    """Word i is the value at psi^(2 rev(i) + 1), of the least primitive 2N-th root of unity psi."""
    x = np.zeros(N, dtype=np.int64)
    x[1] = 1
    for level, prime in enumerate(KEY_PRIMES):
        psi = int(roots(prime)[N // 2])
        assert pow(psi, N, prime) == prime - 1
        for i in (0, 1, 2, 5, N - 1):
            place = 2 * int(f"{i:012b}"[::-1], 2) + 1
            assert int(transformed(x)[level, i]) == pow(psi, place, prime)


def holding(secret: np.ndarray) -> SimpleNamespace:
    """What the project's key holder keeps its key in, with a given one."""
    key, file = seal.SecretKey(), seal_stream.MemoryFile()
    words = transformed(secret).astype(np.uint32)
    members = seal_stream._parms_id(shared_context().key_parms_id())
    members += words.size.to_bytes(8, "little") + np.float64(1).tobytes()
    content = members + seal_stream._words_array(words)
    key.load(shared_context(), file.holding(seal_stream._header(len(content)) + content))
    return SimpleNamespace(secret_key=lambda: key)


def test_this_key_holder_reads_the_reply_of_another_adapter_holder() -> None:
    block = PreparingBlock(D_IN, ROWS)
    block._keys = holding(BLOCK.secret)
    assert np.array_equal(block.finish(reply()).shares.T, products_of_masks())
    block._keys = holding(DIRECT.secret)
    assert not np.array_equal(block.finish(reply()).shares.T, products_of_masks())
    block.close()


def test_another_adapter_holder_answers_this_key_holder() -> None:
    block = PreparingBlock(D_IN, ROWS)
    block.block_id = ID
    b = block.public_halves(NONCE)
    whole = block.encrypted_whole(0, D_IN)
    rows = [
        hidden(combination(row, whole), shares()[r], b, BLOCK_KEY, f"r {r}", FLOOD) for r, row in enumerate(A)
    ]
    prepared = block.finish(np.stack(rows))
    masks = prepared.rho(0, N, D_IN).astype(np.int64)
    assert np.array_equal(prepared.shares, (masks @ A.T.astype(np.int64) - shares().T) % T)
    block.close()


@pytest.mark.parametrize("whole", [True, False])
def test_this_adapter_holder_answers_another_key_holder(whole: bool) -> None:
    evaluation, share_key = (
        BlockEvaluation(A, halves(), common_elements(NONCE, BLOCK_KEY, ID, KEYS)),
        new_key(),
    )
    if whole:
        evaluation.add_whole(ciphertexts())
    else:
        seeds = np.stack([np.frombuffer(BLOCK.seed(j), dtype=np.uint8) for j in range(D_IN)])
        evaluation.add(ciphertexts()[:, 0], seeds)
    found = np.stack([BLOCK.decrypted(row) for row in evaluation.reply(share_key)])
    held_back = ring_rows(share_key, 0, N, ROWS).T.astype(np.int64)
    assert np.array_equal(found, (A.astype(np.int64) @ rho() - held_back) % T)
    evaluation.close()


def test_both_sides_of_the_direct_mode_understand_another() -> None:
    wanted = (A.astype(np.int64) @ X_Q).tolist()
    assert wanted == [8, 1270]
    request = DirectRequest()
    request._keys = holding(DIRECT.secret)
    assert request.products(layout_of(D_IN, ROWS), direct_reply()).tolist() == wanted
    c0, seeds = direct_ciphertext()[:1], np.frombuffer(DIRECT.seed(0), dtype=np.uint8)[np.newaxis]
    elements = common_elements(NONCE, DIRECT_KEY, ID, 1)
    found = DirectSite(A).answer(c0, seeds, DIRECT.half(0), elements)
    assert DIRECT.decrypted(found[0])[[CUT - 1, 2 * CUT - 1]].tolist() == wanted
    request.close()


def test_other_keys_are_no_keys() -> None:
    """Of b that belongs to other elements no reply can be read: nothing here passes by itself."""
    others = common_elements(NONCE, BLOCK_KEY, bytes(16), KEYS)
    evaluation, share_key = BlockEvaluation(A, halves(), others), new_key()
    evaluation.add_whole(ciphertexts())
    found = BLOCK.decrypted(evaluation.reply(share_key)[0])
    held_back = ring_rows(share_key, 0, N, ROWS).T.astype(np.int64)
    assert int((found == (A.astype(np.int64) @ rho() - held_back)[0] % T).sum()) < 4
    evaluation.close()


def test_seeds_of_the_vectors_differ() -> None:
    assert len({seed(f"block seed {j}") for j in range(D_IN)}) == D_IN
    with pytest.raises(HeUnavailable):
        BlockEvaluation(A, halves()[:1], common_elements(NONCE, BLOCK_KEY, ID, KEYS))
