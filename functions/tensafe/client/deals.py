"""The batches of a dealt run, one deal after the other, for an ordinary training loop.

    for deal in DealtBatches(service, training_client.model_id, data_by_unit):
        for part in deal.parts:  # none, where nobody was drawn
            training_client.forward_backward(part, "cross_entropy")
        training_client.optim_step(types.AdamParams(learning_rate=1e-4)).result()

The service draws who takes part, and has charged the whole run when it was created. What the loop owes it:
exactly these data, then one step, also after an empty deal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

from tensafe.client.parts import DEFAULT_LIMITS, PartLimits, parts_of
from tensafe.client.service import Service, ServiceError, quoted
from tensafe.contracts.errors import Conflict, InvalidRequest

NOT_TAKEN: Final = "deal_not_taken"
_NOT_CREATED: Final = "operations_under_way"
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 1.0
_Example = TypeVar("_Example")


@dataclass(frozen=True, slots=True)
class Deals:
    """What has become of a run's deals: all `max_steps` are charged since the run was created."""

    max_steps: int
    dealt: int
    completed: int
    abandoned: int
    open_step: int | None
    next_step: int | None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Deals:
        return cls(**{name: told[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class DealtBatch(Generic[_Example]):
    """The data of one deal, in `parts` of whole units: one forward_backward each, then one optim_step.

    `epsilon` at `delta`: of all that the domain's runs may release, this run with all its steps. `row_hash`
    names the deal's row in the domain's ledger. `resumed`: it was open when the iteration began.
    Who was drawn is for the owner of the data alone, and not in the `repr`: amplification does not hold
    against whoever knows.
    """

    step: int
    unit_ids: tuple[int, ...] = field(repr=False)
    parts: tuple[list[_Example], ...] = field(repr=False)
    epsilon: float
    delta: float
    row_hash: str
    resumed: bool = False


class DealtBatches(Generic[_Example]):
    """Iterates over the deals of a run that are left; each `iter()` asks the service where the run stands.

    A deal that was open when the iteration began comes first, the same again. Of its data some may have
    arrived: an operation that is repeated under its idempotency key (native face) is recognised, a new one
    with the same units is refused. Then `abandon_open=True` goes on with the next deal; nothing else here
    ever gives a deal up. The next deal is asked for once the step of the last one is taken.
    """

    def __init__(
        self,
        service: Service,
        run_id: str,
        data_by_unit: Mapping[int, Sequence[_Example]],
        *,
        abandon_open: bool = False,
        limits: PartLimits = DEFAULT_LIMITS,
        patience_s: float = 600.0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`data_by_unit`: unit id -> all its data, as registered (`parts.by_unit` makes it of a list).

        Raises InvalidRequest for a unit that fits in no part, before anything is dealt.
        """
        for unit_id, examples in data_by_unit.items():
            limits.size_of(unit_id, examples)
        self._service = service
        self._path = f"/v1/training_clients/{quoted(run_id)}/deals"
        self._data = data_by_unit
        self._abandon_open = abandon_open
        self._limits = limits
        self._patience_s = patience_s
        self._pause = pause

    def __iter__(self) -> Iterator[DealtBatch[_Example]]:
        """Raises ServiceError, Unavailable, InvalidRequest (a dealt unit has no data here), and Conflict of
        code `deal_not_taken` if the last deal is still open after `patience_s`.
        """
        deals = self._waited(self._created, "the run has not been created")
        if deals.open_step is not None and self._abandon_open:
            deals = self.abandon(deals.open_step)
        resumed = deals.open_step is not None
        step = deals.open_step if resumed else deals.next_step
        while step is not None:
            yield self._deal(step, resumed=resumed)
            resumed = False
            deals = self._waited(
                partial(self._after, step),
                f"the deal of step {step} is open still: its optim_step has not been taken. Look at the "
                "results of this step's futures, which say why; a new iteration gives the same deal again, "
                "and abandon_open=True the next one",
            )
            step = deals.next_step

    def show(self) -> Deals:
        """What has become of the run's deals; charges nothing. Raises ServiceError."""
        return Deals.of(self._service.get(self._path))

    def abandon(self, step: int) -> Deals:
        """Give the open deal up, charged as it is. Raises ServiceError."""
        return Deals.of(self._service.post(f"{self._path}/{step}/abandon", {}))

    def _deal(self, step: int, *, resumed: bool) -> DealtBatch[_Example]:
        told = self._service.post(self._path, {"step": step})
        unit_ids = tuple(told["unit_ids"])
        missing = [unit_id for unit_id in unit_ids if unit_id not in self._data]
        if missing:
            raise InvalidRequest(
                f"unit {missing[0]} of the deal of step {step} is not in data_by_unit ({len(missing)} of its "
                f"{len(unit_ids)} units are not): give all that is registered, and iterate anew. The deal "
                "stays open; it is charged once"
            )
        parts = parts_of(((unit_id, self._data[unit_id]) for unit_id in unit_ids), self._limits)
        return DealtBatch(
            step, unit_ids, tuple(parts), told["epsilon"], told["delta"], told["row_hash"], resumed
        )

    def _created(self) -> Deals | None:
        try:
            return self.show()
        except ServiceError as error:
            if error.code == _NOT_CREATED:
                return None
            raise

    def _after(self, step: int) -> Deals | None:
        """The deals once that of `step` is open no more."""
        deals = self.show()
        return None if deals.open_step == step else deals

    def _waited(self, look: Callable[[], Deals | None], problem: str) -> Deals:
        """A loop need not wait for its futures: whether the step is taken is asked of the service."""
        waited_s, pause_s = 0.0, _FIRST_PAUSE_S
        while (deals := look()) is None:
            if waited_s >= self._patience_s:
                raise Conflict(f"after {self._patience_s:g} s {problem}", code=NOT_TAKEN)
            self._pause(pause_s)
            waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, _LONGEST_PAUSE_S)
        return deals
