"""What arrives must be the dealt units, whole, unchanged, each once; errors say what to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tensafe.contracts.errors import InvalidRequest
from tensafe.contracts.training import Datum
from tensafe.privacy.arrival import Arrival, received, refuse_incomplete
from tensafe.privacy.dealing import Deal, deal
from tests.unit.privacy.dealt import KEY, SEED, a_datum, deal_terms, manifest_of

RECORDS = {unit: [a_datum(unit, start=unit)] for unit in range(10, 30)}
USERS = {unit: [a_datum(unit, start=start) for start in range(unit, unit + 3)] for unit in range(10, 30)}


def a_deal(*indices: int) -> Deal:
    return Deal(4, np.array(indices, dtype=np.int64), len(indices))


@pytest.fixture
def records() -> Arrival:
    """A deal of the units 10, 12 and 15."""
    return Arrival.of(a_deal(0, 2, 5), manifest_of(RECORDS))


@pytest.fixture
def users() -> Arrival:
    return Arrival.of(a_deal(0, 2, 5), manifest_of(USERS, unit="user"))


def _refused(arrival: Arrival, data: list[Datum], field: str, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match) as caught:
        received(arrival, KEY, data)
    assert caught.value.field == field
    assert "deal stays open; it is charged once" in caught.value.message


def _unit(position: int) -> str:
    return f"data[{position}].loss_fn_inputs.dp_unit_id"


def test_the_dealt_units_are_complete_in_any_order_and_over_several_requests(records: Arrival) -> None:
    together = received(records, KEY, [*RECORDS[15], *RECORDS[10], *RECORDS[12]])
    refuse_incomplete(together)
    apart = received(received(records, KEY, RECORDS[12]), KEY, [*RECORDS[15], *RECORDS[10]])
    assert apart == together
    assert together.missing == 0


def test_a_units_examples_may_be_mixed_with_others(users: Arrival) -> None:
    mixed = [datum for row in zip(USERS[10], USERS[15][::-1], USERS[12], strict=True) for datum in row]
    refuse_incomplete(received(users, KEY, mixed))


def test_a_whole_deal_of_a_run_arrives() -> None:
    manifest = manifest_of(RECORDS)
    dealt = deal(SEED, 0, deal_terms(manifest.units, 0.5, 20))
    ids = manifest.ids[dealt.indices].tolist()
    assert ids
    data = [datum for unit in ids for datum in RECORDS[unit]]
    refuse_incomplete(received(Arrival.of(dealt, manifest), KEY, data))


def test_an_empty_deal_is_complete() -> None:
    refuse_incomplete(Arrival.of(a_deal(), manifest_of(RECORDS)))


def test_other_units_are_refused(records: Arrival) -> None:
    _refused(records, [*RECORDS[10], *RECORDS[11]], _unit(1), "not in the deal of step 4: send exactly")
    _refused(records, [a_datum(999)], _unit(0), "not in the deal")


def test_too_few_units_are_refused_with_their_number(records: Arrival) -> None:
    some = received(records, KEY, RECORDS[10])
    with pytest.raises(InvalidRequest, match="3 units, of which 2 have not arrived: send them, or abandon"):
        refuse_incomplete(some)


def test_changed_content_is_refused(records: Arrival) -> None:
    changed = replace(RECORDS[12][0], tokens=RECORDS[12][0].tokens + np.int32(1))
    _refused(records, [*RECORDS[10], changed], _unit(1), "not those of the manifest")


def test_one_units_data_under_another_units_id_are_refused(records: Arrival) -> None:
    _refused(records, [replace(RECORDS[10][0], unit_id=12)], _unit(0), "not those of the manifest")


def test_part_of_a_user_or_more_is_refused(users: Arrival) -> None:
    _refused(users, USERS[10][:2], _unit(0), "send all of the unit's data in one request")
    _refused(users, [*USERS[12], *USERS[10], USERS[10][0]], _unit(3), "4 datum")


def test_a_unit_comes_once(records: Arrival, users: Arrival) -> None:
    _refused(records, [*RECORDS[10], *RECORDS[12], *RECORDS[10]], _unit(2), r"that of data\[0\] again")
    _refused(received(records, KEY, RECORDS[10]), RECORDS[10], _unit(0), "earlier request of step 4")
    _refused(received(users, KEY, USERS[10]), USERS[10][:1], _unit(0), "earlier request")


def test_data_without_a_unit_are_refused(records: Arrival) -> None:
    with pytest.raises(InvalidRequest, match="every datum needs dp_unit_id"):
        received(records, KEY, [a_datum(None)])


def test_a_refused_request_leaves_what_had_arrived(records: Arrival) -> None:
    some = received(records, KEY, RECORDS[10])
    _refused(some, [*RECORDS[12], *RECORDS[11]], _unit(1), "not in the deal")
    refuse_incomplete(received(some, KEY, [*RECORDS[12], *RECORDS[15]]))


def test_another_domains_key_opens_nothing(records: Arrival) -> None:
    with pytest.raises(InvalidRequest, match="not those of the manifest"):
        received(records, bytes(32), RECORDS[10])
