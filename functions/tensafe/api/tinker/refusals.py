"""A refused operation of a run still has a place in its log.

The SDK counts its seq_id whatever the answer was, and a run's operations wait for every seq below
theirs. So whatever can be read of a refused body is read for its address, and a tombstone goes there. A
body that does not say its address leaves a gap: the trainer fails the operations behind it, naming the
missing seq_id, once the SDK's retries must be over.

A refused chunk of training data is answered with its future, which has failed, and not with a 4xx. The SDK
sends a batch's first chunk last, and not at all once another one is refused; its client then waits for
that chunk's turn for ever and sends nothing more (`TrainingClient._take_turn`, SDK 0.38). All else that it
sends for a run is one request with one turn, which passes whatever the answer is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import zstandard
from fastapi import Request
from pydantic import TypeAdapter
from starlette.responses import Response

from tensafe.api import runs
from tensafe.api.bodies import JSON_MAX_BYTES
from tensafe.api.context import BodyTooLarge, Context
from tensafe.api.tinker.bodies import answer
from tensafe.auth.principal import Principal
from tensafe.contracts.errors import TensafeError
from tensafe.operations.records import Operation, OpKind, StreamKind
from tensafe.wire.forward_backward import address_of
from tensafe.wire.ids import RequestId, RunId
from tensafe.wire.tinker_responses.futures import FutureResponse

_HEAD_BYTES: Final = 512
"""Of a decompressed body; its first two fields, the address, take less than 300."""
_WINDOW_MAX_BYTES: Final = 8 * 1024 * 1024
_OBJECT: Final = TypeAdapter(dict[str, Any])
Address = tuple[str, int]


async def or_tombstone(
    context: Context,
    principal: Principal,
    kind: OpKind,
    request: Request,
    submit: Callable[[bytes], Awaitable[Response]],
) -> Response:
    """Submit a JSON body; if that is refused, fill the seq before saying so."""
    raw = b""
    try:
        raw = await context.body(request, max_bytes=JSON_MAX_BYTES)
        return await submit(raw)
    except TensafeError as error:
        await _leave(context, principal, kind, error, lambda error: json_address(raw, error))
        raise


async def or_failed_future(
    context: Context,
    principal: Principal,
    kind: OpKind,
    submit: Callable[[], Awaitable[Response]],
    address: Callable[[TensafeError], Address | None],
) -> Response:
    """Submit; if that is refused, the future of the tombstone. An error where there can be none."""
    try:
        return await submit()
    except TensafeError as error:
        left = await _leave(context, principal, kind, error, address)
        if left is None:
            raise
        return answer(FutureResponse.of(RequestId(RunId.parse(left.stream_id), left.seq)))


async def _leave(
    context: Context,
    principal: Principal,
    kind: OpKind,
    error: TensafeError,
    address: Callable[[TensafeError], Address | None],
) -> Operation | None:
    found = address(error) if error.category == "user" else None
    if found is None:
        return None
    try:
        stream = context.services.streams.get(found[0], principal.tenant, StreamKind.RUN)
    except TensafeError:
        return None  # not a run of this tenant, or erased: nothing waits
    runs.served(context.services, stream)
    return await context.call(context.services.submissions.reject, stream, found[1], kind, error)


def json_address(raw: bytes, error: TensafeError) -> Address | None:
    """`model_id` and `seq_id` of a refused JSON body, damaged or cut short as it may be."""
    if isinstance(error, BodyTooLarge):
        raw = error.head.rstrip(b"0123456789")  # a number at the cut may be the beginning of another one
    try:
        body = _OBJECT.validate_json(raw.decode(errors="ignore"), experimental_allow_partial=True)
        run, seq = body["model_id"], body["seq_id"]
    except (ValueError, KeyError):
        return None
    return (run, seq) if isinstance(run, str) and type(seq) is int else None


def protobuf_address(raw: bytes, content_encoding: str | None, error: TensafeError) -> Address | None:
    """`model_id` and `seq_id` of a refused protobuf body, damaged, compressed or cut short as it may be."""
    if isinstance(error, BodyTooLarge):
        raw = error.head
    if (content_encoding or "").strip().lower() != "zstd":
        return address_of(raw[:_HEAD_BYTES])
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX_BYTES)
        with decompressor.stream_reader(raw) as reader:
            return address_of(reader.read(_HEAD_BYTES))
    except (zstandard.ZstdError, MemoryError):
        return None
