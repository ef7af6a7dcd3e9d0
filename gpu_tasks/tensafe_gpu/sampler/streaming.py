"""Storing what a text request has drawn so far, a few times a second, while the engine draws more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from tensafe.contracts.errors import TensafeError
from tensafe.contracts.text import TextPayload, TextSoFar
from tensafe.operations.progress import MAX_PARTS
from tensafe.operations.records import Operation, StreamRecord
from tensafe.services import Services
from tensafe_gpu.sampler.text import Texts

log = logging.getLogger(__name__)

INTERVAL_S: Final = 0.1
OnTokens = Callable[[int, Sequence[int]], None]


@asynccontextmanager
async def streamed(
    services: Services, texts: Texts, stream: StreamRecord, operation: Operation, payload: TextPayload
) -> AsyncIterator[OnTokens]:
    """Yields what to call with (continuation, all of its tokens so far); parts are stored meanwhile.

    A part that cannot be stored ends the parts and nothing else: the result is whole without them.
    """
    parts = _Parts(services, texts, stream, operation, payload)
    storing = asyncio.create_task(parts.store_for_ever())
    try:
        yield parts.note
    finally:
        storing.cancel()
        await asyncio.gather(storing, return_exceptions=True)


class _Parts:
    def __init__(
        self,
        services: Services,
        texts: Texts,
        stream: StreamRecord,
        operation: Operation,
        payload: TextPayload,
    ) -> None:
        self._services = services
        self._texts = texts
        self._stream = stream
        self._operation = operation
        self._payload = payload
        self._tokens: dict[int, Sequence[int]] = {}
        self._told: dict[int, str] = {}
        self._count = 0

    def note(self, index: int, tokens: Sequence[int]) -> None:
        """Called in the loop, for every step of the engine."""
        self._tokens[index] = list(tokens)

    async def store_for_ever(self) -> None:
        while self._count < MAX_PARTS:
            await asyncio.sleep(INTERVAL_S)
            fresh, self._tokens = self._tokens, {}
            if not fresh:
                continue
            try:
                await asyncio.to_thread(self._store, fresh)
            except TensafeError as error:
                log.warning("streaming stopped: %s", error.code, extra={"stream": self._stream.stream_id})
                return

    def _store(self, fresh: dict[int, Sequence[int]]) -> None:
        added = {}
        for index, tokens in fresh.items():
            settled, told = self._texts.settled(self._payload, tokens), self._told.get(index, "")
            if len(settled) > len(told) and settled.startswith(told):
                added[index] = settled[len(told) :]
                self._told[index] = settled
        if added:
            data = TextSoFar(added=added).model_dump_json().encode()
            self._services.progress.add(self._stream, self._operation, self._count, data)
            self._count += 1
            self._services.doorbell.finished(self._stream.stream_id)
