"""What becomes of a run's deals: decisions on values, no storage.

    deal(n) -> open -> complete     the data came, the step was taken
                  \\-> abandoned    given up, or followed by deal(n + 1) while it was open

One deal of a run is open at a time. A deal is charged when it is made, before anybody sees it, and
stays charged whatever becomes of it, so looking at a deal and asking for another costs a step.
Every call names its step, so that a repeated one is recognised: it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, cast, get_args

from tensafe.contracts.errors import BudgetExceeded, Conflict, IntegrityError
from tensafe.storage.ports import JsonValue

Outcome = Literal["open", "complete", "abandoned"]


@dataclass(frozen=True, slots=True)
class DealRecord:
    """A run's deals so far. `last` is the outcome of deal `dealt - 1`, None before the first.

    `max_steps` is frozen with the mechanism (amplified.max_steps), so admission compares two integers.
    """

    max_steps: int
    dealt: int = 0
    abandoned: int = 0
    last: Outcome | None = None

    @property
    def charged(self) -> int:
        """Steps that the accountant composes: every deal that was ever made."""
        return self.dealt

    @property
    def open_step(self) -> int | None:
        """The step whose deal waits for its data."""
        return self.dealt - 1 if self.last == "open" else None

    @property
    def completed(self) -> int:
        """Deals whose step was taken."""
        return self.dealt - self.abandoned - (self.last == "open")

    def to_body(self) -> dict[str, JsonValue]:
        """JSON for durable storage."""
        return dict(asdict(self))

    @classmethod
    def from_body(cls, body: Mapping[str, JsonValue]) -> DealRecord:
        """Read what `to_body` wrote. Raises IntegrityError unless it adds up."""
        try:
            record = cls(
                max_steps=int(cast(int, body["max_steps"])),
                dealt=int(cast(int, body["dealt"])),
                abandoned=int(cast(int, body["abandoned"])),
                last=cast("Outcome | None", body["last"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"the record of the run's deals is damaged: {error!r}") from error
        known = record.last is None or record.last in get_args(Outcome)
        adds_up = 0 <= record.completed <= record.dealt <= record.max_steps and record.abandoned >= 0
        begun = (record.last is None) == (record.dealt == 0)
        if not (known and adds_up and begun) or record.to_body() != dict(body):
            raise IntegrityError("the record of the run's deals does not add up")
        return record


def dealt(record: DealRecord, step: int) -> DealRecord:
    """The record once the deal of `step` is made; make this durable before the deal is shown.

    The step after the last makes a new deal, and abandons the one that is open. The open step again
    changes nothing: regenerate its deal. Raises BudgetExceeded (the open deal then stays open) or Conflict.
    """
    if step == record.open_step:
        return record
    if step != record.dealt:
        raise Conflict(
            f"the next deal is that of step {record.dealt}, not {step}; steps only go forward: ask for "
            "that one"
        )
    if record.dealt >= record.max_steps:
        raise BudgetExceeded(
            f"all {record.max_steps} steps that the budget allows are charged, {record.abandoned} of them "
            "abandoned deals; nothing was dealt: create another run"
        )
    given_up = record.last == "open"
    return replace(record, dealt=record.dealt + 1, abandoned=record.abandoned + given_up, last="open")


def complete(record: DealRecord, step: int) -> DealRecord:
    """The record once the step of the open deal is taken. Raises Conflict for any other step."""
    return _ended(record, step, "complete")


def abandon(record: DealRecord, step: int) -> DealRecord:
    """The record once the open deal is given up; it stays charged. Raises Conflict for any other step."""
    return _ended(record, step, "abandoned")


def _ended(record: DealRecord, step: int, outcome: Outcome) -> DealRecord:
    if step >= record.dealt or step < 0:
        raise Conflict(f"step {step} has not been dealt; ask for the deal of step {record.dealt} first")
    if step < record.dealt - 1:
        raise Conflict(
            f"the deal of step {step} ended before that of step {record.dealt - 1} was made; go on with "
            "the open one"
        )
    if record.last == outcome:
        return record
    if record.last != "open":
        raise Conflict(
            f"the deal of step {step} is {record.last} and charged; "
            f"go on with the deal of step {record.dealt}"
        )
    return replace(record, abandoned=record.abandoned + (outcome == "abandoned"), last=outcome)
