"""Every deal is charged once, whatever becomes of it, and one is open at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensafe.contracts.errors import BudgetExceeded, Conflict, IntegrityError
from tensafe.privacy.deal_record import DealRecord, abandon, complete, dealt

Transition = Callable[[DealRecord, int], DealRecord]
NEW = DealRecord(max_steps=3)


def test_a_deal_is_charged_when_it_is_made_and_completed_once() -> None:
    opened = dealt(NEW, 0)
    assert (opened.charged, opened.open_step, opened.completed) == (1, 0, 0)
    done = complete(opened, 0)
    assert (done.charged, done.open_step, done.completed, done.abandoned) == (1, None, 1, 0)


def test_a_repeated_call_changes_nothing() -> None:
    opened = dealt(NEW, 0)
    assert dealt(opened, 0) == opened
    for ending in (complete, abandon):
        ended = ending(opened, 0)
        assert ending(ended, 0) == ended
        with pytest.raises(Conflict):
            dealt(ended, 0)


def test_the_next_deal_abandons_an_open_one_which_stays_charged() -> None:
    second = dealt(dealt(NEW, 0), 1)
    assert (second.charged, second.abandoned, second.open_step) == (2, 1, 1)
    assert complete(second, 1).completed == 1


def test_an_abandoned_deal_is_charged_and_cannot_be_completed() -> None:
    given_up = abandon(dealt(NEW, 0), 0)
    assert (given_up.charged, given_up.abandoned, given_up.completed) == (1, 1, 0)
    with pytest.raises(Conflict, match="abandoned and charged; go on with the deal of step 1"):
        complete(given_up, 0)
    with pytest.raises(Conflict, match="is complete"):
        abandon(complete(dealt(NEW, 0), 0), 0)


def test_no_deal_beyond_the_budget_and_the_open_one_survives_the_refusal() -> None:
    record = dealt(dealt(dealt(NEW, 0), 1), 2)
    with pytest.raises(BudgetExceeded, match=r"all 3 steps .* 2 of them abandoned"):
        dealt(record, 3)
    assert complete(record, 2).completed == 1
    with pytest.raises(BudgetExceeded):
        dealt(DealRecord(max_steps=0), 0)


@pytest.mark.parametrize("step", [-1, 1, 5])
def test_steps_are_dealt_in_order(step: int) -> None:
    with pytest.raises(Conflict):
        dealt(NEW, step)
    with pytest.raises(Conflict, match="not been dealt"):
        complete(NEW, step)


def test_a_deal_of_long_ago_has_ended() -> None:
    record = dealt(complete(dealt(NEW, 0), 0), 1)
    with pytest.raises(Conflict, match="ended before"):
        complete(record, 0)


CALLS = st.tuples(st.sampled_from([dealt, complete, abandon]), st.integers(-1, 1))


@given(st.integers(0, 6), st.lists(CALLS, max_size=30))
def test_whatever_is_called_charges_only_grow_and_add_up(
    max_steps: int, calls: list[tuple[Transition, int]]
) -> None:
    record, shown, taken = DealRecord(max_steps), set(), set()
    for transition, ahead in calls:
        step = record.dealt + ahead
        before = record
        try:
            record = transition(record, step)
        except (Conflict, BudgetExceeded):
            continue
        if transition is dealt:
            shown.add(step)
        if transition is complete:
            taken.add(step)
        assert record.charged >= before.charged
        assert record.charged == len(shown) <= max_steps
        assert record.completed == len(taken)
        assert record.completed + record.abandoned + (record.open_step is not None) == record.dealt
        assert DealRecord.from_body(record.to_body()) == record


@pytest.mark.parametrize(
    "changed",
    [
        {"dealt": 4},
        {"dealt": 0},
        {"abandoned": 2},
        {"abandoned": -1},
        {"last": "lost"},
        {"last": None},
        {"max_steps": "3"},
        {"dealt": None},
        {"extra": 1},
    ],
)
def test_a_damaged_record_is_refused(changed: dict[str, object]) -> None:
    body = dealt(NEW, 0).to_body()
    with pytest.raises(IntegrityError):
        DealRecord.from_body({**body, **changed})  # type: ignore[dict-item]
    with pytest.raises(IntegrityError):
        DealRecord.from_body({})
