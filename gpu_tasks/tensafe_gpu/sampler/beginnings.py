"""Beginning an operation, and giving it back: also where it is not known whether it was begun.

An operation that stands as begun by a sampler that lives is left to it by every other one, which drops the
message. So what is not answered here has to be put back before its message is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from tensafe.contracts.errors import TensafeError, Unavailable
from tensafe.operations.outcomes import Outcomes
from tensafe.operations.records import Operation
from tensafe.storage.ports import ConditionFailed
from tensafe_gpu.sampler.in_flight import Held
from tensafe_gpu.sampler.threads import StorageThreads


class Beginnings:
    """Of one sampler, named `owner`. `in_thread` runs a call of storage without holding up the loop."""

    def __init__(
        self,
        outcomes: Outcomes,
        owner: str,
        *,
        in_thread: StorageThreads,
        healthy: Callable[[], bool],
        pause_s: float,
    ) -> None:
        self._outcomes, self._owner = outcomes, owner
        self._in_thread, self._healthy, self._pause_s = in_thread, healthy, pause_s

    async def begin(self, held: Held, operation: Operation) -> Operation | None:
        """The operation, marked as run by us and its try counted; None if it was cancelled or taken.

        Raises Unavailable, and then it may be begun all the same.
        """
        held.begun = self._outcomes.begun(operation, owner=self._owner)
        held.beginning = asyncio.ensure_future(self._in_thread(self._start, operation))
        begun: Operation | None = await asyncio.shield(held.beginning)
        return begun

    async def count(self, held: Held, operation: Operation) -> None:
        """A try that failed before the engine was given anything."""
        held.counted = True  # also where this is cancelled: `put_back_now` follows
        with suppress(TensafeError):
            await self.begin(held, operation)
        await self.put_back(held, counted=True)

    async def put_back(self, held: Held, *, counted: bool) -> None:
        """Pending again, as soon as storage takes it; `counted` says whether the try was its own fault.

        Nothing happens if it was never begun or has ended: and none of our writes begins it any more, however
        late it comes. A dead engine's are put back by the sweeper.
        """
        held.counted = counted
        while held.begun is not None and self._healthy():
            try:
                if await self._in_thread(self._settled, held.begun, counted):
                    return
            except Unavailable:
                await asyncio.sleep(self._pause_s)

    def _settled(self, begun: Operation, counted: bool) -> bool:
        """Whether it neither stands as begun here nor can any more. Raises Unavailable."""
        if self._outcomes.put_back(begun, counted=counted):
            return True
        try:
            found = self._outcomes.peek(begun.stream_id, begun.seq)
        except Unavailable:
            raise
        except TensafeError:
            return True
        if found is None or found.state.final:
            return True
        if found.owner == self._owner and found != begun:  # of an earlier try, and not in hand
            return self._outcomes.put_back(found, counted=counted)
        if found.version < begun.version:  # our write may be on its way
            return self._outcomes.fence(found)
        return found != begun  # it came between the two looks

    @staticmethod
    async def arrived(some: Iterable[Held], timeout_s: float) -> None:
        """Wait for beginnings that are on their way, whose tasks may have been cancelled meanwhile."""
        calls = {held.beginning for held in some if held.beginning is not None}
        if calls:
            done, _ = await asyncio.wait(calls, timeout=timeout_s)
            for call in done:
                if not call.cancelled():
                    call.exception()  # told to nobody else

    def put_back_now(self, held: Held) -> None:
        """At the end of this process, in a thread. Raises TensafeError."""
        if held.begun is not None:
            self._outcomes.put_back(held.begun, counted=held.counted)

    def _start(self, operation: Operation) -> Operation | None:
        begun = self._outcomes.begun(operation, owner=self._owner)
        try:
            return self._outcomes.start(operation, (), owner=self._owner)
        except ConditionFailed:
            # Nobody else has our name: then an earlier write of ours came late.
            return begun if self._outcomes.peek(operation.stream_id, operation.seq) == begun else None
