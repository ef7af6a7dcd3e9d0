"""The tree is that of RFC 6962; a proof shows a leaf, its place and the size, and nothing else passes."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.privacy.merkle import MerkleTree, leaf_hash, verify_inclusion


def by_the_rfc(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word by word."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + by_the_rfc(leaves[:split]) + by_the_rfc(leaves[split:])).digest()


def leaves_of(size: int) -> list[bytes]:
    return [b"leaf %d" % index for index in range(size)]


def tree_of(leaves: list[bytes]) -> MerkleTree:
    return MerkleTree(len(leaves), leaves.__getitem__)


@pytest.mark.parametrize("size", [*range(1, 20), 1023, 1024, 1025, 2048, 3001])
def test_the_root_is_the_rfcs(size: int) -> None:
    assert tree_of(leaves_of(size)).root == by_the_rfc(leaves_of(size))


def test_the_known_roots_of_certificate_transparency() -> None:
    """The eight leaves of the reference implementation's test."""
    texts = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
    tree = tree_of([bytes.fromhex(text) for text in texts])
    assert tree.root.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@given(st.integers(1, 2100), st.data())
def test_a_proof_shows_its_leaf_and_no_other(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    tree = tree_of(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = tree.proof(index)
    assert len(proof) <= (size - 1).bit_length()
    verify_inclusion(tree.root, size, index, leaves[index], proof)
    wrong = [
        (tree.root, size, index, leaves[index] + b"x", proof),
        (tree.root, size, index, leaves[index], [*proof, bytes(32)]),
        (tree.root, size, size, leaves[index], proof),
        (bytes(32), size, index, leaves[index], proof),
    ]
    if proof:
        turned = bytes([proof[0][0] ^ 1]) + proof[0][1:]
        wrong += [
            (tree.root, size, index, leaves[index], proof[:-1]),
            (tree.root, size, index, leaves[index], [turned, *proof[1:]]),
            (tree.root, size, index, leaves[index], [proof[0][:31], *proof[1:]]),
            (tree.root, size, index ^ 1, leaves[index], proof),
        ]
    for arguments in wrong:
        with pytest.raises(IntegrityError):
            verify_inclusion(*arguments)


def test_a_node_does_not_pass_for_a_leaf() -> None:
    leaves = leaves_of(4)
    left, right = leaf_hash(leaves[0]), leaf_hash(leaves[1])
    with pytest.raises(IntegrityError):
        verify_inclusion(tree_of(leaves).root, 2, 0, left + right, tree_of(leaves).proof(0)[1:])


def test_no_tree_without_leaves_and_no_proof_without_a_leaf() -> None:
    with pytest.raises(InvalidRequest):
        tree_of([])
    for index in (-1, 3):
        with pytest.raises(InvalidRequest, match="0 to 2"):
            tree_of(leaves_of(3)).proof(index)
