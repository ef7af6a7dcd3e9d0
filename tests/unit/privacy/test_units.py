"""Unit ids become tags under the domain's secret, and counts are of steps."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import IntegrityError, InvalidRequest
from tensafe.privacy.units import (
    MAX_UNITS_PER_STEP,
    ParticipationCounts,
    checked_ids,
    checked_set,
    pack,
    set_digest,
    unit_tag,
    unit_tags,
    unpack,
)

SECRET = bytes(range(32))


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_tag_is_hmac_sha256_of_the_id(unit_id: int) -> None:
    message = b"tensafe/privacy/unit/v1\0" + unit_id.to_bytes(8, "big", signed=True)
    assert unit_tag(SECRET, unit_id) == hmac.new(SECRET, message, hashlib.sha256).digest()[:16]


def test_tags_differ_between_units_and_domains() -> None:
    ids = [0, 1, -1, 2**31, 2**63 - 1, -(2**63)]
    tags = unit_tags(SECRET, ids) + unit_tags(bytes(32), ids)
    assert len(set(tags)) == 12


def test_a_set_digest_does_not_depend_on_order() -> None:
    tags = unit_tags(SECRET, range(5))
    assert set_digest(SECRET, tags) == set_digest(SECRET, tags[::-1])
    assert set_digest(SECRET, tags) != set_digest(SECRET, tags[:4])
    assert set_digest(SECRET, tags) != set_digest(bytes(32), tags)
    assert unpack(pack(tags)) == sorted(tags)
    with pytest.raises(IntegrityError):
        unpack(b"x" * 17)


@pytest.mark.parametrize(("ids", "position"), [([1, None], 1), ([2**63], 0), ([1, 2, -(2**63) - 1], 2)])
def test_a_bad_id_is_named_by_position(ids: list[int | None], position: int) -> None:
    with pytest.raises(InvalidRequest, match="dp_unit_id") as caught:
        checked_ids(ids)
    assert caught.value.field == f"data[{position}].loss_fn_inputs.dp_unit_id"


def test_a_step_names_each_unit_once_and_not_too_many() -> None:
    assert checked_set({3, 1}) in ([1, 3], [3, 1])
    with pytest.raises(InvalidRequest, match="each unit once"):
        checked_set([1, 1])
    with pytest.raises(InvalidRequest, match="at most 25000 units"):
        checked_set(range(MAX_UNITS_PER_STEP + 1))


def test_counts_are_of_steps() -> None:
    counts = ParticipationCounts()
    assert (counts.largest, counts.largest_after([])) == (0, 0)
    counts.add([b"a", b"b"])
    counts.add([b"a"])
    assert counts.largest == 2
    assert counts.largest_after([b"b"]) == 2
    assert counts.largest_after([b"a"]) == 3
    assert counts.largest_after([]) == 2
    assert counts.spent_positions([b"b", b"a", b"c"], 2) == [1]
    assert counts.spent_positions([b"b", b"a", b"c"], 1) == [0, 1]
