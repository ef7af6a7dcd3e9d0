"""Waiting for results: one at a time, or all of a sampling session by cursor.

Nothing is answered early: an unfinished future is held for the whole long poll and then 408, so that the
SDK, which asks again at once, never spins. What fails in here is no 5xx either (`api/errors.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tensafe.api import answers, futures
from tensafe.api.bodies import DATA_MAX_BYTES, read
from tensafe.api.context import Edge, SampleCaller, WorkCaller
from tensafe.api.direct import DirectRoute
from tensafe.api.errors import submitted_by
from tensafe.api.openapi import ERRORS, documented
from tensafe.api.tinker.bodies import answer
from tensafe.api.tinker.prefix import PREFIX, TAGS
from tensafe.contracts.payloads import PROTOBUF
from tensafe.operations import completions
from tensafe.operations.completions import Completion
from tensafe.operations.records import Failure, Operation, OpKind, OpState, StreamRecord
from tensafe.services import Services
from tensafe.wire.tinker_requests import futures as bodies
from tensafe.wire.tinker_responses import futures as responses

router = APIRouter(prefix=PREFIX, tags=TAGS, responses=ERRORS, route_class=DirectRoute)
_NOT_YET: Final = responses.TryAgainResponse

METADATA_FIRST_BYTES: Final = 1024 * 1024
"""A larger result is announced before it is sent, so that the client can reserve memory for it."""


@router.post(
    "/retrieve_future",
    responses={
        200: {"content": {"application/json": {}, PROTOBUF: {}}},
        **answers.ELSEWHERE,
        408: {"model": _NOT_YET},
    },
    openapi_extra=documented(bodies.RetrieveFutureBody),
)
async def retrieve_future(request: Request, principal: WorkCaller, context: Edge) -> Response:
    """The result of one operation, its failure, or 408 after a long poll."""
    body = await read(bodies.RetrieveFutureBody, request, context)
    future = futures.find(context, principal, body.request_id)
    ended = await futures.ended(context, request, future, context.limits.long_poll_s)
    if ended is None:
        return answer(responses.TryAgainResponse(request_id=body.request_id), 408)
    operation = ended.operation
    if operation.failure is not None:
        return _failed(_located(operation, operation.failure), operation.request_id)
    if body.allow_metadata_only and operation.result_size_bytes > METADATA_FIRST_BYTES:
        return answer(responses.CompleteMetadataResponse(response_payload_size=operation.result_size_bytes))
    result = await futures.result(context, ended)
    if result is None:
        return _failed(Failure("no_result", "the operation ended without a result", "server"))
    headers = submitted_by(operation.request_id)
    return await answers.send(context, result.data, result.content_type, headers)


@router.post("/retrieve_futures", openapi_extra=documented(bodies.RetrieveFuturesBody))
async def retrieve_futures(request: Request, principal: SampleCaller, context: Edge) -> Response:
    """What has ended in a sampling session since the cursor; waits if nothing has."""
    body = await read(bodies.RetrieveFuturesBody, request, context, max_bytes=DATA_MAX_BYTES)
    stream = context.sampler(principal, str(body.to_sampler_id()))
    items, clone = context.services.ports.items, body.target.cloned_sampler_id

    def look() -> list[Completion] | None:
        return completions.since(items, stream.stream_id, clone, body.prev_cursor) or None

    limit_s = context.limits.long_poll_s
    timeout_s = limit_s if body.timeout is None else min(body.timeout, limit_s)
    found = await context.wait(request, stream.stream_id, look, timeout_s) or []
    listed = [_listed(context.services, stream, completion) for completion in found]
    cursor = found[-1].cursor if found else body.prev_cursor
    return answer(responses.RetrieveFuturesResponse(completions=listed, cursor=cursor))


@router.post("/cancel_future", openapi_extra=documented(bodies.CancelFutureBody))
async def cancel_future(request: Request, principal: WorkCaller, context: Edge) -> Response:
    """Cancel an operation that has not started."""
    body = await read(bodies.CancelFutureBody, request, context)
    future = futures.find(context, principal, body.request_id)
    submissions = context.services.submissions
    operation = await context.call(submissions.cancel, future.stream, future.operation.seq)
    return JSONResponse({"request_id": body.request_id, "cancelled": operation.state is OpState.CANCELLED})


def _failed(failure: Failure, request_id: str | None = None) -> Response:
    """With the id of the request that submitted it in the message, since the SDK shows nothing else."""
    origin = "" if request_id is None else f" (submitted by request {request_id})"
    return answer(
        responses.RequestFailedResponse(
            error=f"[{failure.code}] {failure.message}{origin}", category=failure.category
        )
    )


def _located(operation: Operation, failure: Failure) -> Failure:
    """With the field in the message, since the SDK shows nothing else.

    The SDK cuts a batch into chunks, and an example counts within its own.
    """
    field = failure.field
    if field is None:
        return failure
    message = failure.message if field in failure.message else f"{field}: {failure.message}"
    if operation.kind is OpKind.FORWARD_BACKWARD and field.startswith("data["):
        message += f" (counted within the chunk that has seq_id {operation.seq})"
    return replace(failure, message=message)


def _listed(
    services: Services, stream: StreamRecord, completion: Completion
) -> responses.FutureFinished | responses.FutureFailed:
    request_id = f"{stream.stream_id}:{completion.seq}"
    operation = services.outcomes.get(stream, completion.seq)
    if operation.state is not OpState.COMPLETED:
        return responses.FutureFailed(request_id=request_id)
    return responses.FutureFinished(
        request_id=request_id, response_payload_uncompressed_size=operation.result_size_bytes or None
    )
