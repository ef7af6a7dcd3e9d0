"""Attested epsilons of an export, computed again: those of every run's steps 1, 2, 4, ... and of its last.

Each takes a tenth of a second or more; the rows between must not go down. What is attested is believed:
that the client draws every step's units independently, each with the stated probability. Neighbouring
relation: zero out one unit, or add or remove one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tensafe.privacy import verify_amplified
from tensafe.privacy.verify_amplified import Sampled
from tensafe.privacy.verify_forms import LedgerRefused, RowForm4

_OVER: Final = 250.0
"""A row may say that epsilon is above 300 only if it is above this here."""


@dataclass(frozen=True, slots=True)
class _Last:
    row: RowForm4
    steps: int
    where: str


class Attested:
    """The attested runs of one export, row by row."""

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}
        self._epsilon: dict[str, float] = {}

    def take(self, row: RowForm4, steps: int, where: str) -> None:
        """One more row, the `steps`-th of its run. Raises LedgerRefused."""
        before = self._last.get(row.run_id)
        if before is not None and _value(row) < _value(before.row):
            raise LedgerRefused(where, "its attested_epsilon is below that of the step before")
        self._last[row.run_id] = _Last(row, steps, where)
        if steps & (steps - 1) == 0:
            self._check(self._last[row.run_id])

    def finish(self) -> None:
        """After the last row: the last one of every run. Raises LedgerRefused."""
        for last in self._last.values():
            self._epsilon[last.row.run_id] = self._check(last)

    def epsilon_of(self, run_id: str) -> float | None:
        """Of all steps of an attested run, as computed here."""
        return self._epsilon.get(run_id)

    def _check(self, last: _Last) -> float:
        row = last.row
        step = Sampled(1, row.attested_probability, 1, row.noise_multiplier, last.steps)
        computed = verify_amplified.epsilon_of(frozenset({step}), 0.0, row.delta)
        stated = row.attested_epsilon
        right = computed > _OVER if stated is None else verify_amplified.is_epsilon(stated, computed)
        if not right:
            raise LedgerRefused(
                last.where, f"it states attested_epsilon {stated}; the replay gives {computed:.9g}"
            )
        return computed


def _value(row: RowForm4) -> float:
    return float("inf") if row.attested_epsilon is None else row.attested_epsilon
