"""`/v1/training_clients/{id}/deals`: which units a dealt run's next step takes.

For runs of either face: the owner asks here beside the SDK, with the run's id. A deal is charged before it
is answered, and the answer is only for the data's owner: whoever receives the model must not see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from pydantic import Field

from tensafe.api.bodies import read
from tensafe.api.context import Context, Edge, TrainCaller
from tensafe.api.openapi import ERRORS, documented
from tensafe.contracts.errors import Conflict, NotFound
from tensafe.contracts.training import Strict
from tensafe.operations.records import StreamRecord
from tensafe.wire.json_body import RequestModel

if TYPE_CHECKING:  # the privacy rooms are loaded by the first run or domain that needs them
    from tensafe.privacy.deal_record import DealRecord
    from tensafe.privacy.deals import DealtUnits

UNDER_WAY = "operations_under_way"
router = APIRouter(prefix="/v1/training_clients", tags=["deals"], responses=ERRORS)


class AskForDeal(RequestModel):
    """Which step's deal: the open one again, or the one after the last."""

    step: int = Field(ge=0, lt=1_000_000)


class DealState(Strict):
    """What has become of a run's deals. `open_step` waits for its data; `next_step` is the one to ask for.

    All `max_steps` deals are charged since the run was created, whatever becomes of them.
    """

    max_steps: int
    dealt: int
    completed: int
    abandoned: int
    open_step: int | None
    next_step: int | None

    @classmethod
    def of(cls, deals: DealRecord) -> DealState:
        return cls(
            max_steps=deals.max_steps,
            dealt=deals.dealt,
            completed=deals.completed,
            abandoned=deals.abandoned,
            open_step=deals.open_step,
            next_step=deals.dealt if deals.dealt < deals.max_steps else None,
        )


class IssuedDeal(Strict):
    """A charged deal: send exactly the data of `unit_ids`, then step. It may be empty: step all the same.

    `epsilon`, `delta`: of all that the domain's runs may release, every dealt run with all its deals.
    `row_hash`: the deal's row in the domain's ledger.
    """

    step: int
    unit_ids: list[int]
    epsilon: float
    delta: float
    row_hash: str
    deals: DealState

    @classmethod
    def of(cls, issued: DealtUnits) -> IssuedDeal:
        return cls(
            step=issued.step,
            unit_ids=list(issued.unit_ids),
            epsilon=issued.epsilon,
            delta=issued.record.mechanism.delta,
            row_hash=issued.row_hash,
            deals=DealState.of(issued.record.deals),
        )


@router.post("/{client_id}/deals", openapi_extra=documented(AskForDeal))
async def issue(client_id: str, request: Request, principal: TrainCaller, context: Edge) -> IssuedDeal:
    """Charge and draw a step's units; the same step again is the same deal, charged once.

    The next step while one is open abandons that. It is refused while operations of the run are under way:
    one of them may be about to complete the open deal.
    """
    run = context.run(principal, client_id)
    body = await read(AskForDeal, request, context)
    return IssuedDeal.of(await context.call(_issue, context, run, body.step))


@router.get("/{client_id}/deals")
async def show(client_id: str, principal: TrainCaller, context: Edge) -> DealState:
    """What has become of the run's deals; charges nothing."""
    run = context.run(principal, client_id)
    return DealState.of(await context.call(_deals_of, context, run))


@router.post("/{client_id}/deals/{step}/abandon")
async def abandon(client_id: str, step: int, principal: TrainCaller, context: Edge) -> DealState:
    """Give the open deal up. It stays charged; what has arrived of it is dropped with the next data."""
    run = context.run(principal, client_id)

    def given_up() -> DealRecord:
        _refuse_under_way(context, run, _deals_of(context, run), step + 1)
        return context.services.deals.abandon(run, step)

    return DealState.of(await context.call(given_up))


def _issue(context: Context, run: StreamRecord, step: int) -> DealtUnits:
    _refuse_under_way(context, run, _deals_of(context, run), step)
    return context.services.deals.issue(run, step)


def _deals_of(context: Context, run: StreamRecord) -> DealRecord:
    try:
        return context.services.deals.shown(run)
    except NotFound:
        raise Conflict(
            "the run has not been created yet, or could not be: wait for the future of its creation, which "
            "says why; nothing was charged",
            code=UNDER_WAY,
        ) from None


def _refuse_under_way(context: Context, run: StreamRecord, deals: DealRecord, step: int) -> None:
    """Whoever abandons a deal while its step is on the way would lose the step, and pay for both."""
    abandons = deals.open_step is not None and step == deals.dealt
    if abandons and context.services.outcomes.first_open(run.stream_id) is not None:
        raise Conflict(
            f"operations of this run are under way, and the deal of step {deals.open_step} is open: wait for "
            "their results before this deal is given up; nothing was charged",
            code=UNDER_WAY,
        )
