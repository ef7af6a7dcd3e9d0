"""What the routes that submit operations of a run share."""

from __future__ import annotations

from starlette.responses import Response

from tensafe.api import admission, runs
from tensafe.api.context import Context
from tensafe.api.tinker.bodies import answer
from tensafe.contracts.training import Strict
from tensafe.operations.records import OpKind, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe.wire.ids import RequestId
from tensafe.wire.tinker_responses.futures import FutureResponse


async def submit(
    context: Context,
    stream: StreamRecord,
    address: RequestId,
    kind: OpKind,
    payload: Strict,
    *,
    identity: Strict | None = None,
) -> Response:
    """Write an operation with a JSON payload durably; its future. `identity`: what a retry repeats of it."""
    runs.served(context.services, stream)
    same = None if identity is None else identity.model_dump_json().encode()
    submission = Submission(address.seq, kind, payload.model_dump_json().encode(), identity=same)
    await context.call(admission.submit, context.services, stream, submission)
    return answer(FutureResponse.of(address))
