"""Epsilon of a whole domain, dealt runs and bounded ones together.

A dealt run counts whole, all its `max_steps` deals, from its opening on; a bounded one with the largest
count of any unit so far. Neighbouring relation: add or remove one unit, or zero one out.
"""

from __future__ import annotations

from tensafe.privacy import accountant, amplified
from tensafe.privacy.amplified import Spent
from tensafe.privacy.records import Head


def spent_of(head: Head) -> Spent:
    """What the runs of the head release at most, as the accountant of dealt runs takes it."""
    spent = Spent(gaussian_mu_squared=accountant.mu_squared(head.runs))
    for gaussian, steps in head.dealt.values():
        spent = spent.plus(gaussian, steps)
    return spent


def stated_epsilon(head: Head) -> float:
    """What the last row says of the domain, without computing it where that is costly."""
    return domain_epsilon(head) if head.epsilon is None else head.epsilon


def domain_epsilon(head: Head) -> float:
    """Epsilon at the head's delta; infinite above 300 if there are dealt runs.

    Exact without dealt runs; with them it takes loss distributions, from milliseconds to seconds.
    """
    if not head.dealt:
        return accountant.epsilon(head.runs, head.delta)
    return amplified.total_epsilon(spent_of(head), head.delta)
