"""A future is an operation of a stream, named by `{stream}:{seq}`; both faces look it up here."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from tensafe.api.context import Context
from tensafe.auth.principal import AccessScope, Principal
from tensafe.contracts.errors import Gone, InvalidRequest, NotFound
from tensafe.operations.records import Operation, OpState, Result, StreamKind, StreamRecord
from tensafe.wire.ids import RequestId
from tensafe.wire.paths import CheckpointPath


@dataclass(frozen=True, slots=True)
class Future:
    """An operation together with the stream that it belongs to."""

    stream: StreamRecord
    operation: Operation

    @property
    def future_id(self) -> str:
        return f"{self.operation.stream_id}:{self.operation.seq}"

    @property
    def run_id(self) -> str | None:
        """The run that it is an operation of, or whose weights it samples from; None for a base model's."""
        if self.stream.kind is StreamKind.RUN:
            return self.stream.stream_id
        path = self.stream.spec.get("model_path")
        return str(CheckpointPath.parse(path).run) if isinstance(path, str) else None


def find(context: Context, principal: Principal, future_id: str) -> Future:
    """The caller's future.

    Raises NotFound for any other, Gone once its run is erased, Forbidden for a key that could not have
    submitted it.
    """
    try:
        request = RequestId.parse(future_id)
    except InvalidRequest:
        raise NotFound("no such future") from None
    services = context.services
    try:
        stream = services.streams.get(str(request.owner), principal.tenant)
        operation = services.outcomes.get(stream, request.seq)
    except NotFound:
        raise NotFound("no such future") from None
    principal.require(AccessScope.TRAIN if stream.kind is StreamKind.RUN else AccessScope.SAMPLE)
    return Future(stream, operation)


async def ended(context: Context, request: Request, future: Future, timeout_s: float) -> Future | None:
    """The future once its operation has ended, or None after `timeout_s`."""
    if future.operation.state.final:
        return future
    outcomes = context.services.outcomes

    def look() -> Future | None:
        operation = outcomes.peek(future.stream.stream_id, future.operation.seq)
        if operation is None:
            raise Gone("this run has been erased")
        return Future(future.stream, operation) if operation.state.final else None

    return await context.wait(request, future.stream.stream_id, look, timeout_s)


async def result(context: Context, future: Future) -> Result | None:
    """The result of a completed future; None if it failed or was cancelled."""
    if future.operation.state is not OpState.COMPLETED:
        return None
    outcomes = context.services.outcomes
    if future.operation.result_size_bytes <= 256 * 1024:
        return outcomes.result(future.stream, future.operation)
    return await context.call(outcomes.result, future.stream, future.operation)
