"""`/v1/futures`: where an operation stands, its result, its cancellation."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from tensafe.api import answers, futures
from tensafe.api.context import Caller, Edge
from tensafe.api.errors import submitted_by
from tensafe.api.native.models import FutureState
from tensafe.api.openapi import ERRORS
from tensafe.contracts.errors import HE_CODES, HeRefused, InvalidRequest, NotFound, TensafeError
from tensafe.operations.records import Failure, OpKind
from tensafe.wire.results import attested_of

router = APIRouter(prefix="/v1/futures", tags=["futures"], responses=ERRORS)


class OperationFailed(InvalidRequest):
    """The operation ended without a result, for good: its code, message and field are the answer."""

    def __init__(self, failure: Failure, submitted_by: str | None = None) -> None:
        super().__init__(failure.message, field=failure.field, code=failure.code)
        self.submitted_by = submitted_by


class EncryptionFailed(HeRefused):
    """As OperationFailed where it had to run under encryption and could not: a 503."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.message = failure.message


def failed(failure: Failure, submitted_by: str | None = None) -> TensafeError:
    """What an operation that ended with this failure is answered with."""
    return EncryptionFailed(failure) if failure.code in HE_CODES else OperationFailed(failure, submitted_by)


@router.get("/{future_id}")
async def show(future_id: str, principal: Caller, context: Edge) -> FutureState:
    """Where the operation stands."""
    return FutureState.of(futures.find(context, principal, future_id))


@router.get(
    "/{future_id}/result",
    response_model=None,
    responses={200: {"content": {"application/json": {}}}, 202: {"model": FutureState}, **answers.ELSEWHERE},
)
async def result(
    future_id: str,
    request: Request,
    principal: Caller,
    context: Edge,
    timeout_s: Annotated[float, Query(ge=0, le=20, allow_inf_nan=False)] = 20.0,
) -> Response:
    """The result once there is one (waits up to `timeout_s`), 202 while there is none, 422 if it failed."""
    future = futures.find(context, principal, future_id)
    ended = await futures.ended(context, request, future, timeout_s)
    if ended is None:
        return JSONResponse(FutureState.of(future).model_dump(), 202)
    if ended.operation.failure is not None:
        raise failed(ended.operation.failure, ended.operation.request_id)
    outcome = await futures.result(context, ended)
    if outcome is None:
        raise TensafeError("the operation ended without a result")
    headers = submitted_by(ended.operation.request_id)
    return await answers.send(context, outcome.data, outcome.content_type, headers)


@router.get("/{future_id}/attestation")
async def attestation(future_id: str, principal: Caller, context: Edge) -> JSONResponse:
    """The signed statement of what computed a sample, of either face; `tensafe verify` checks it offline.

    404 while there is no result, and for what is not a sample.
    """
    future = futures.find(context, principal, future_id)
    outcome = await futures.result(context, future)
    if outcome is None or future.operation.kind not in (OpKind.SAMPLE, OpKind.TEXT):
        raise NotFound("there is no attestation of this operation")
    found = await context.call(attested_of, outcome.data, outcome.content_type)
    if found is None:
        raise NotFound("this answer was made before answers were attested")
    return JSONResponse(found.fields())


@router.post("/{future_id}/cancel")
async def cancel(future_id: str, principal: Caller, context: Edge) -> FutureState:
    """Cancel the operation if it has not started; the answer says how it stands."""
    future = futures.find(context, principal, future_id)
    submissions = context.services.submissions
    operation = await context.call(submissions.cancel, future.stream, future.operation.seq)
    return FutureState.of(futures.Future(future.stream, operation))
