"""Records of operations that were refused or never came, so that nothing waits for their seq for ever."""

from __future__ import annotations

from tensafe.contracts.errors import TensafeError
from tensafe.correlation import current_request_id
from tensafe.operations import layout
from tensafe.operations.records import Failure, Operation, OpKind, OpState
from tensafe.storage.ports import Put


def tombstone(stream_id: str, seq: int, kind: OpKind, error: TensafeError, now_ms: int) -> Put:
    """A failed operation without a payload, if its seq is not taken."""
    failure = Failure.of(error)
    operation = Operation(
        stream_id,
        seq,
        kind,
        OpState.FAILED,
        now_ms,
        "",
        1,
        finished_ms=now_ms,
        failure=failure,
        request_id=current_request_id(),
    )
    return Put(layout.op_item(stream_id, seq), operation.to_body(), 0)


def is_tombstone(operation: Operation) -> bool:
    """Whether it never was an operation: what was accepted has the fingerprint of its payload."""
    return operation.state is OpState.FAILED and not operation.fingerprint
