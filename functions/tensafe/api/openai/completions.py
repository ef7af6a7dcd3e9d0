"""`/v1/completions` and `/v1/chat/completions`: text in, text out, at once or as it is drawn."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tensafe.api.bodies import DATA_MAX_BYTES, parse
from tensafe.api.context import Context, Edge, SampleCaller
from tensafe.api.execution_policy import asked_policy
from tensafe.api.futures import Future
from tensafe.api.model_samplers import Asked, samplers_of
from tensafe.api.openai.answers import DONE, Answers, ChatAnswers, CompletionAnswers, Json, evidence, usage
from tensafe.api.openai.bodies import ChatBody, CompletionBody
from tensafe.api.openai.following import Following, Piece
from tensafe.api.openapi import ERRORS, documented
from tensafe.api.request_id import request_id_of
from tensafe.auth.principal import Principal
from tensafe.contracts.errors import TensafeError
from tensafe.contracts.text import TextResult
from tensafe.operations.records import OpKind

router = APIRouter(prefix="/v1", tags=["openai"], responses=ERRORS)

_EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}}
}
_NO_STORE: Final = {"Cache-Control": "no-store"}


@router.post(
    "/completions", openapi_extra=documented(CompletionBody), response_class=Response, responses=_EVENTS
)
async def completions(request: Request, principal: SampleCaller, context: Edge) -> Response:
    """Continue one prompt or several.

    `execution_policy`, or the header X-TenSafe-Execution-Policy, strengthens the policy of the adapter.
    """
    return await _answer(request, principal, context, CompletionBody, CompletionAnswers())


@router.post(
    "/chat/completions", openapi_extra=documented(ChatBody), response_class=Response, responses=_EVENTS
)
async def chat_completions(request: Request, principal: SampleCaller, context: Edge) -> Response:
    """The assistant's next turn, by the model's own chat template.

    `execution_policy`, or the header X-TenSafe-Execution-Policy, strengthens the policy of the adapter.
    """
    return await _answer(request, principal, context, ChatBody, ChatAnswers())


async def _answer(
    request: Request,
    principal: Principal,
    context: Context,
    model: type[CompletionBody | ChatBody],
    answers: Answers,
) -> Response:
    raw = await context.body(request, max_bytes=DATA_MAX_BYTES)
    samplers = samplers_of(request)

    def submit() -> tuple[CompletionBody | ChatBody, list[Future]]:
        parsed = parse(model, raw, max_bytes=DATA_MAX_BYTES)
        policy = asked_policy(request, parsed.execution_policy)
        body = parsed.model_copy(update={"execution_policy": policy})
        asked = [Asked(OpKind.TEXT, payload.model_dump_json().encode()) for payload in body.payloads()]
        return body, [samplers.submit(principal.tenant, body.model, one) for one in asked]

    with ExitStack() as held:
        # First: what is refused leaves nothing in the log.
        held.enter_context(context.waiting(principal.tenant))
        body, futures = await context.call(submit)
        place = held.pop_all()
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": answers.chunk if body.stream else answers.whole,
        "created": int(time.time()),
        "model": body.model,
    }
    following = Following(context, request, futures, place)
    if not body.stream:
        results = await following.results()
        choices = [choice for result in results for choice in result.choices]
        listed = [answers.choice(index, choice) for index, choice in enumerate(choices)]
        body_of = {**head, "choices": listed, "usage": usage(results), **evidence(results)}
        return JSONResponse(body_of, headers=_NO_STORE)
    # What is refused at once is refused with its status, before any event.
    pieces = following.pieces(body.n)
    first = await anext(pieces)
    events = _events(request, head, answers, first, pieces, include_usage=body.include_usage)
    return StreamingResponse(events, media_type="text/event-stream", headers=_NO_STORE)


async def _events(
    request: Request,
    head: Json,
    answers: Answers,
    first: Piece,
    rest: AsyncIterator[Piece],
    *,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """Server-sent events: pieces, endings, usage if asked for, `[DONE]`; or an error as the last event."""
    opened: set[int] = set()
    results: Sequence[TextResult] = ()
    held: Json | None = None  # an ending: the last one of all brings the evidence, which comes after it
    try:
        async for piece in _chained(first, rest):
            if piece.results is not None:
                results = piece.results
                continue
            if held is not None:
                yield _event(held)
                held = None
            if piece.index not in opened and (opening := answers.opening(piece.index)) is not None:
                yield _event({**head, "choices": [opening]})
            opened.add(piece.index)
            choice = (
                answers.piece(piece.index, piece.text)
                if piece.ended is None
                else answers.ending(piece.index, piece.text, piece.ended)
            )
            event = {**head, "choices": [choice]}
            if piece.ended is None:
                yield _event(event)
            else:
                held = event
    except TensafeError as error:
        told = {"code": error.code, "message": error.message, "request_id": request_id_of(request.scope)}
        yield _event({"error": told})
        return
    if held is not None:
        yield _event({**held, **evidence(results)})
    if include_usage:
        yield _event({**head, "choices": [], "usage": usage(results)})
    yield DONE


async def _chained(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
