"""Who may run together: the more often a request was in an engine that died, the fewer run beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

SUSPECTS: Final = 8
"""How many that were in one engine that died may run at once."""


class Turns:
    """Places for coroutines.

    One that was never in a dead engine shares with all. One that was in one shares too, beside at most
    `SUSPECTS` - 1 of its like, so that a second death leaves few to look at. One that was in more runs
    alone: another death is its own. Those who wait to be alone hold back newcomers.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._suspects = asyncio.Semaphore(SUSPECTS)
        self._sharing = 0
        self._alone = False
        self._waiting_alone = 0

    @asynccontextmanager
    async def take(self, tries: int) -> AsyncIterator[None]:
        """Hold a place until the block ends; `tries` counts the dead engines that it was in."""
        async with AsyncExitStack() as stack:
            if tries == 1:
                await stack.enter_async_context(self._suspects)
            await stack.enter_async_context(self._exclusive() if tries > 1 else self._shared())
            yield

    @asynccontextmanager
    async def _shared(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone and self._waiting_alone == 0)
            self._sharing += 1
        try:
            yield
        finally:
            async with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        async with self._changed:
            self._waiting_alone += 1
            try:
                await self._changed.wait_for(lambda: not self._alone and self._sharing == 0)
                self._alone = True
            finally:
                self._waiting_alone -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            async with self._changed:
                self._alone = False
                self._changed.notify_all()
