"""A content hash depends on all of a unit's data and on nothing else."""

from __future__ import annotations

import hashlib
import hmac
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import Datum
from tensafe.privacy.content import content_key, datum_digest, unit_content_hash
from tests.unit.privacy.dealt import KEY, a_datum


def test_the_bytes_that_are_hashed_are_the_documented_ones() -> None:
    datum = Datum(
        np.array([1, -2], dtype=np.int32),
        {"weights": np.array([0.5, 1], dtype=np.float32), "target_tokens": np.array([[3], [4]])},
        9,
    )
    message = b"tensafe/privacy/datum/v1\0" + struct.pack("<Q2i", 2, 1, -2) + struct.pack("<I", 2)
    message += struct.pack("<H", 13) + b"target_tokens" + b"q" + struct.pack("<B2Q2q", 2, 2, 1, 3, 4)
    message += struct.pack("<H", 7) + b"weights" + b"f" + struct.pack("<BQ2f", 1, 2, 0.5, 1)
    digest = hashlib.sha256(message).digest()
    assert datum_digest(datum) == digest
    unit = b"tensafe/privacy/unit-content/v1\0" + struct.pack("<qQ", 9, 1) + digest
    assert unit_content_hash(KEY, 9, [datum]) == hmac.new(KEY, unit, hashlib.sha256).digest()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), min_size=2, max_size=6), st.randoms())
def test_the_order_of_a_units_data_is_free_and_their_number_is_not(
    shapes: list[tuple[int, int]], random
) -> None:
    data = [a_datum(start=start, length=length) for start, length in shapes]
    shuffled = random.sample(data, len(data))
    assert unit_content_hash(KEY, 7, data) == unit_content_hash(KEY, 7, shuffled)
    assert unit_content_hash(KEY, 7, data) != unit_content_hash(KEY, 7, data[:-1])
    assert unit_content_hash(KEY, 7, data) != unit_content_hash(KEY, 7, [*data, data[0]])


def _changed() -> dict[str, Datum]:
    datum = a_datum()
    other = datum.tokens.copy()
    other[2] += 1
    targets, weights = datum.inputs["target_tokens"], datum.inputs["weights"]
    lifted = np.nextafter(weights, np.float32(2))
    return {
        "a token": Datum(other, datum.inputs, 7),
        "a target": Datum(datum.tokens, {**datum.inputs, "target_tokens": targets[::-1]}, 7),
        "a weight's last bit": Datum(datum.tokens, {**datum.inputs, "weights": lifted}, 7),
        "no weights": Datum(datum.tokens, {"target_tokens": targets}, 7),
        "another name": Datum(datum.tokens, {"target_tokens": targets, "weightt": weights}, 7),
        "another shape": Datum(datum.tokens, {**datum.inputs, "target_tokens": targets[:, None]}, 7),
        "another type": Datum(datum.tokens, {**datum.inputs, "weights": weights.astype(np.int64)}, 7),
        "a token more": a_datum(length=6),
    }


@pytest.mark.parametrize("change", list(_changed()))
def test_every_change_of_content_changes_the_hash(change: str) -> None:
    assert unit_content_hash(KEY, 7, [_changed()[change]]) != unit_content_hash(KEY, 7, [a_datum()])


def test_equal_data_of_two_units_or_two_domains_have_unrelated_hashes() -> None:
    other = content_key(bytes(32))
    hashes = {unit_content_hash(key, unit, [a_datum()]) for key in (KEY, other) for unit in (7, 8)}
    assert len(hashes) == 4


def test_how_an_array_lies_in_memory_does_not_matter() -> None:
    datum = a_datum()
    spread = np.repeat(datum.tokens, 2)[::2]
    assert datum_digest(Datum(spread, dict(reversed(datum.inputs.items())))) == datum_digest(datum)


def test_what_cannot_be_hashed_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one datum"):
        unit_content_hash(KEY, 7, [])
    with pytest.raises(InvalidRequest, match="int32"):
        datum_digest(Datum(np.arange(3), {}))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="float32 or int64"):
        datum_digest(Datum(np.arange(3, dtype=np.int32), {"weights": np.ones(3)}))  # type: ignore[dict-item]
    with pytest.raises(InvalidRequest, match="32 bytes"):
        content_key(b"short")
