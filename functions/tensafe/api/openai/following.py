"""Following text requests to their end: their results, or pieces as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from fastapi import Request
from pydantic import ValidationError

from tensafe.api import futures
from tensafe.api.context import Context
from tensafe.api.futures import Future
from tensafe.api.native.futures import failed
from tensafe.contracts.errors import Gone, IntegrityError, TensafeError, Unavailable
from tensafe.contracts.text import TextChoice, TextResult, TextSoFar
from tensafe.services import Services

REPLACED: Final = "the sampler was replaced while it answered; ask again"
_T = TypeVar("_T")
_SLICE_S: Final = 2.0
"""How often it is looked whether the client is still there."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text added to a choice; the last one comes with the whole choice. Or, at the end, the results."""

    index: int
    text: str = ""
    ended: TextChoice | None = None
    results: Sequence[TextResult] | None = None


class Following:
    """The operations of one HTTP request, in the order of its prompts."""

    def __init__(self, context: Context, request: Request, asked: Sequence[Future], place: ExitStack) -> None:
        """`place` is what holds the request's place among those that wait; closed at the end."""
        self._context = context
        self._place = place
        self._request = request
        self._asked = asked
        self._deadline_s = time.monotonic() + context.limits.completion_s

    async def results(self) -> list[TextResult]:
        """All of them. Raises OperationFailed, or Unavailable when it takes too long."""
        try:
            return [await self._result(future) for future in self._asked]
        except BaseException:
            await self._give_up()
            raise
        finally:
            self._place.close()

    async def pieces(self, choices_each: int) -> AsyncIterator[Piece]:
        """What is added to each choice, prompt by prompt, and the results at the end."""
        results = []
        try:
            for position, future in enumerate(self._asked):
                told: dict[int, str] = {}
                first = position * choices_each
                async for index, text in self._growing(future, told):
                    yield Piece(first + index, text)
                result = await self._result(future)
                for index, choice in enumerate(result.choices):
                    before = told.get(index, "")
                    if not choice.text.startswith(before):
                        raise Unavailable(REPLACED)
                    yield Piece(first + index, choice.text[len(before) :], ended=choice)
                results.append(result)
        except BaseException:
            await self._give_up()
            raise
        finally:
            self._place.close()
        yield Piece(0, results=results)

    async def _growing(self, future: Future, told: dict[int, str]) -> AsyncIterator[tuple[int, str]]:
        """What is added to the choices of a request until it has ended; `told` keeps all of it."""
        parts = _Parts(self._context.services, future)
        while (found := await self._wait(future, parts.look)) is not None:
            for added in found:
                for index, text in added.items():
                    told[index] = told.get(index, "") + text
                    yield index, text
            if parts.ended:
                return

    async def _result(self, future: Future) -> TextResult:
        outcomes = self._context.services.outcomes

        def look() -> Future | None:
            operation = outcomes.peek(future.stream.stream_id, future.operation.seq)
            if operation is None:
                raise Gone("this run has been erased")
            return Future(future.stream, operation) if operation.state.final else None

        ended = await self._wait(future, look)
        if ended.operation.failure is not None:
            raise failed(ended.operation.failure, ended.operation.request_id)
        outcome = await futures.result(self._context, ended)
        if outcome is None:
            raise TensafeError("the operation ended without a result")
        try:
            return TextResult.model_validate_json(outcome.data)
        except ValidationError as error:
            raise IntegrityError("the log holds a text result that this release cannot read") from error

    async def _wait(self, future: Future, look: Callable[[], _T | None]) -> _T:
        """What `look` returns once it is not None. Raises Unavailable at the limit or without a client."""
        while (left_s := self._deadline_s - time.monotonic()) > 0:
            wait_s = min(_SLICE_S, left_s)
            found = await self._context.wait(
                self._request, future.stream.stream_id, look, wait_s, has_place=True
            )
            if found is not None:
                return found
            if await self._request.is_disconnected():
                raise Unavailable("the client has gone")
        raise Unavailable(
            f"the answer took longer than {self._context.limits.completion_s:g} s; ask for fewer tokens, or "
            "sample with a future (the native or the Tinker face)"
        )

    async def _give_up(self) -> None:
        """Cancel what nobody has begun; what runs in an engine ends there."""
        submissions = self._context.services.submissions
        for future in self._asked:
            with suppress(TensafeError):
                await asyncio.shield(
                    self._context.call(submissions.cancel, future.stream, future.operation.seq)
                )


class _Parts:
    """Reads the parts of a request's present try, each once."""

    def __init__(self, services: Services, future: Future) -> None:
        self._services = services
        self._future = future
        self._tries = 0
        self._count = 0
        self.ended = False

    def look(self) -> list[dict[int, str]] | None:
        """New parts; nothing yet is None, and an empty list says that the request has ended.

        Raises Unavailable if another sampler began again after some were read: it may draw other tokens.
        """
        stream = self._future.stream
        operation = self._services.outcomes.peek(stream.stream_id, self._future.operation.seq)
        if operation is None:
            raise Gone("this run has been erased")
        if operation.state.final:
            self.ended = True
            return []
        if operation.tries != self._tries:
            if self._count:
                raise Unavailable(REPLACED)
            self._tries = operation.tries
        found = self._services.progress.since(stream, operation, self._count)
        self._count += len(found)
        return [_added(raw) for raw in found] or None


def _added(raw: bytes) -> dict[int, str]:
    try:
        return TextSoFar.model_validate_json(raw).added
    except ValidationError as error:
        raise IntegrityError("a part of the answer cannot be read") from error
