"""When the alarms go off: of what they watch minute by minute, as their periods and datapoints have it."""

from __future__ import annotations

import pytest

from tests.support.alarms import Period, alarm, alarms
from tests.support.templates import OBSERVABILITY, read_template, resources

VISIBILITY_S = 360
"""Of the dead queues: so long a letter is out of sight after each try."""

LASTS = {
    "privacy-budget": "told at a charge; what is spent stays spent, and another domain's charge says nothing",
    "dead-lettered": "told once; the operation stays set aside until somebody redrives it",
    "he-unavailable": "told with a request; an adapter holder that nobody asks is no better for it",
}
"""Alarms of what outlives its datapoint, which nothing measures the end of."""
EVERY_MINUTE = {
    "operation-age": "the sweeper tells it",
    "sweeper-errors": "Lambda, of each call, and there is one a minute",
    "sweep-failures": "SQS, of a queue that somebody looked at within six hours",
    "train-dead-letters": "the same",
    "sample-dead-letters": "the same",
}
"""Alarms of what is measured whether it is well or not: without a figure, nothing is known."""
RATES = {
    "http-5xx": "of all answers",
    "service-errors": "of all answers",
    "throttled": "of all calls",
    "authorizer-errors": "of all requests",
    "dead-letters-errors": "a letter that fails comes again within the period",
    "lease-churn": "of all leases",
}
"""Alarms of how much of something happens: where none does, it has ended."""
OF_SILENCE = {"sweeper-silent"}


def samples(minutes: int, tried_s: float, *, again: bool, offset_s: int = 0) -> list[Period]:
    """What SQS tells of one letter, minute by minute; it is tried at once, for `tried_s`.

    After that it is deleted, or it waits out its visibility time-out and is taken again within a second.
    """
    found: list[Period] = []
    for minute in range(minutes):
        at_s = 60 * minute + offset_s
        visible = again and at_s % (VISIBILITY_S + 1) >= VISIBILITY_S
        held = not visible and (again or at_s < tried_s)
        found.append({"waiting": [float(visible)], "held": [float(held)]})
    return found


@pytest.mark.parametrize("name", ["train-dead-letters", "sample-dead-letters"])
def test_a_letter_that_fails_again_and_again_is_seen(name: str) -> None:
    watched = alarm(name)
    for offset_s in range(60):
        seen = samples(30, 60, again=True, offset_s=offset_s)
        assert sum(period["waiting"] == [1.0] for period in seen) <= 1  # alone it would not be
        assert watched.rings(seen)
        assert watched.rings(seen[:6])
        assert not watched.rings(samples(30, 60, again=False, offset_s=offset_s))


@pytest.mark.parametrize("name", ["train-dead-letters", "sample-dead-letters"])
def test_a_letter_that_nobody_takes_is_seen_and_one_that_is_settled_is_not(name: str) -> None:
    watched = alarm(name)
    waits: Period = {"waiting": [1.0], "held": [0.0]}
    nothing: Period = {"waiting": [0.0], "held": [0.0]}
    assert watched.rings([waits] * 5)
    assert watched.rings([waits, waits, nothing, waits, waits, waits])  # SQS's counts are approximate
    assert not watched.rings([waits, nothing] * 10)  # a new letter every two minutes, each settled
    assert not watched.rings([{"waiting": [], "held": []}] * 10)


def test_errors_of_the_dead_letters_function() -> None:
    watched = alarm("dead-letters-errors")
    again = [1.0] * (900 // (VISIBILITY_S + 60))  # tries of one letter, as many as a period has at least
    assert watched.rings([again])
    assert not watched.rings([[1.0]] * 10)  # of each letter the first try failed, and no other
    assert not watched.rings([[0.0] * 20] * 10)


def test_a_row_of_failed_sweeps_is_seen() -> None:
    watched = alarm("sweeper-errors")
    assert watched.rings([[1.0], [1.0], [0.0], [1.0]])
    assert not watched.rings([[1.0], [1.0], [0.0], [0.0], [0.0]] * 3)
    assert not watched.rings([[]] * 10)


def test_a_sweeper_that_nobody_calls_is_missed() -> None:
    watched = alarm("sweeper-silent")
    assert watched.rings([[1.0], [], [], [], [], []])  # Lambda tells nothing of a minute without a call
    assert not watched.rings([[1.0]] * 10)
    assert not watched.rings([[], [], [], [], [1.0]] * 5)


def test_one_operation_that_is_set_aside_is_seen() -> None:
    assert alarm("dead-lettered").rings([[1.0]])
    assert not alarm("dead-lettered").rings([[]] * 10)


def test_what_silence_says_is_decided_for_every_alarm() -> None:
    here = {
        one["AlarmName"]["Fn::Sub"].removeprefix("${ServiceName}-")
        for one in resources(read_template(OBSERVABILITY), "AWS::CloudWatch::Alarm").values()
    }
    assert here == LASTS.keys() | EVERY_MINUTE.keys() | RATES.keys() | OF_SILENCE
    assert all(alarms()[name].actions["ALARM"] for name in here)


def _periods(name: str, *, bad: bool) -> list[Period]:
    """As many as the alarm takes, far over its threshold or at 0."""
    watched = alarm(name)
    value = [1000.0 * max(watched.threshold, 1.0) if bad else 0.0]
    return [dict.fromkeys(watched.all_watched, value)] * watched.periods


def _silence(name: str) -> list[Period]:
    return [{one: list[float]() for one in alarm(name).all_watched}] * 60


@pytest.mark.parametrize("name", LASTS)
def test_nothing_gives_the_all_clear_for_what_lasts_and_the_next_one_rings_again(name: str) -> None:
    watched, bad = alarm(name), _periods(name, bad=True)
    assert watched.tells([*bad, *_silence(name)]) == ["ALARM"]
    assert watched.tells([*bad, *_periods(name, bad=False)]) == ["ALARM"]
    assert watched.tells([*bad, *_silence(name), *bad]) == ["ALARM", "ALARM"]


@pytest.mark.parametrize("name", EVERY_MINUTE)
def test_figures_that_stay_away_are_no_all_clear(name: str) -> None:
    watched, bad = alarm(name), _periods(name, bad=True)
    assert watched.tells([*bad, *_silence(name)]) == ["ALARM"]
    assert watched.tells([*bad, *_silence(name), *_periods(name, bad=False)]) == ["ALARM", "OK"]


@pytest.mark.parametrize("name", RATES)
def test_a_rate_has_ended_where_nothing_happens(name: str) -> None:
    assert alarm(name).tells([*_periods(name, bad=True), *_silence(name)]) == ["ALARM", "OK"]


def test_a_domain_at_the_end_of_its_budget_whose_run_ends_stays_one() -> None:
    watched = alarm("privacy-budget")
    assert watched.tells([[0.85, 0.95], [], [], []]) == ["ALARM"]
    assert watched.tells([[0.95], [0.1], [0.1]]) == ["ALARM"]  # a domain of another tenant
    assert watched.tells([[0.95], [0.96], [], [0.92]]) == ["ALARM", "ALARM"]
