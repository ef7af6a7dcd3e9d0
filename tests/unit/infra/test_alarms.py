"""When the alarms go off: of what they watch minute by minute, as their periods and datapoints have it."""

from __future__ import annotations

import pytest

from tests.support.alarms import Period, alarm

VISIBILITY_S = 360
"""Of the dead queues: so long a letter is out of sight after each try."""


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
