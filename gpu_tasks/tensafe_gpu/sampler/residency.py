"""Which adapters vLLM holds: least recently used out, never one that a request needs.

vLLM loads an adapter that it does not hold *inside the forward pass*, from a path that no longer
exists here, and an error there ends the engine for everybody. So the number of adapters in vLLM never
passes its capacity, an adapter in use is never evicted, and nothing reaches vLLM without a lease.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from tensafe_gpu.sampler.adapters import Adapter
from tensafe_gpu.sampler.private.adapter import PrivateAdapter

_LOG: Final = logging.getLogger(__name__)

AnyAdapter = Adapter | PrivateAdapter
Load = Callable[[int, AnyAdapter], Awaitable[str]]
"""Load the adapter under a new id; returns the path that vLLM knows it by, or a private one's name."""
Unload = Callable[["Resident"], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Resident:
    """An adapter in vLLM. `adapter_id` and `path` are never used twice."""

    identity: str
    adapter_id: int
    path: str


class ResidentAdapters:
    """At most `capacity` adapters in vLLM; one load or eviction at a time.

    A private adapter has its place before it is opened, and is opened beside the others: that takes minutes.
    """

    def __init__(self, capacity: int, load: Load, unload: Unload) -> None:
        self._capacity = capacity
        self._load = load
        self._unload = unload
        self._ids = itertools.count(1)
        self._held: OrderedDict[str, Resident] = OrderedDict()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._leases: Counter[str] = Counter()
        self._users: Counter[int] = Counter()
        self._retired: dict[int, Resident] = {}
        """Out of `_held`, and still used by requests that will hear of it."""
        self._moving = 0
        """Places of those that are being opened, or unloaded after their last request."""
        self._changing = asyncio.Lock()
        self._released = asyncio.Event()

    def __contains__(self, identity: str) -> bool:
        return identity in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._held))

    def __len__(self) -> int:
        return len(self._held)

    @asynccontextmanager
    async def lease(self, adapter: AnyAdapter) -> AsyncIterator[Resident]:
        """The adapter, loaded if need be, and kept until the end of the block.

        While all places are taken by adapters in use it waits for one, in order of arrival. Raises
        what `load` raises; a later lease tries again.
        """
        identity = adapter.identity
        self._leases[identity] += 1
        try:
            while identity not in self._held:  # again if it was retired before this request had its turn
                # Shielded: a load that was begun is finished and entered here even if its request is
                # cancelled, or vLLM would hold an adapter that nobody counts.
                await asyncio.shield(self._loading_task(adapter))
            self._held.move_to_end(identity)
            async with self._used(self._held[identity]) as resident:
                yield resident
        finally:
            self._leases[identity] -= 1
            if not self._leases[identity]:
                del self._leases[identity]
            self._released.set()

    async def forget(self, identity: str) -> None:
        """Unload the adapter unless it is in use."""
        async with self._changing:
            if identity in self._held and identity not in self._leases:
                await self._evict(self._held[identity])

    async def retire(self, resident: Resident) -> None:
        """Give a resident to no request any more, and unload it once those that have it have ended.

        The next lease loads the adapter anew. A second call does nothing.
        """
        if self._held.get(resident.identity) is not resident:
            return
        del self._held[resident.identity]
        self._retired[resident.adapter_id] = resident
        await self._unload_retired(resident)

    @asynccontextmanager
    async def _used(self, resident: Resident) -> AsyncIterator[Resident]:
        self._users[resident.adapter_id] += 1
        try:
            yield resident
        finally:
            self._users[resident.adapter_id] -= 1
            if not self._users[resident.adapter_id]:
                del self._users[resident.adapter_id]
            await self._unload_retired(resident)

    async def _unload_retired(self, resident: Resident) -> None:
        if resident.adapter_id in self._users or resident.adapter_id not in self._retired:
            return
        del self._retired[resident.adapter_id]
        _LOG.info("adapter retired", extra={"adapter_id": resident.adapter_id})
        await asyncio.shield(asyncio.create_task(self._moved(self._unload(resident))))

    def _loading_task(self, adapter: AnyAdapter) -> asyncio.Task[None]:
        """The one task that is loading this adapter."""
        identity = adapter.identity
        task = self._loading.get(identity)
        if task is None:
            task = asyncio.create_task(self._bring_in(adapter), name=f"load {identity}")
            self._loading[identity] = task
            task.add_done_callback(lambda done: self._loaded(identity, done))
        return task

    def _loaded(self, identity: str, task: asyncio.Task[None]) -> None:
        del self._loading[identity]
        if not task.cancelled() and task.exception() is not None:
            _LOG.warning("adapter not loaded", extra={"error": type(task.exception()).__name__})

    async def _bring_in(self, adapter: AnyAdapter) -> None:
        async with self._changing:
            await self._make_room()
            adapter_id = next(self._ids)
            if not isinstance(adapter, PrivateAdapter):
                await self._enter(adapter_id, adapter)
                return
            opening = self._moved(self._enter(adapter_id, adapter))
        await opening

    def _moved(self, work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
        """The work, for which a place is kept from now to its end."""
        self._moving += 1

        async def move() -> None:
            try:
                await work
            finally:
                self._moving -= 1
                self._released.set()

        return move()

    async def _enter(self, adapter_id: int, adapter: AnyAdapter) -> None:
        path = await self._load(adapter_id, adapter)
        self._held[adapter.identity] = Resident(adapter.identity, adapter_id, path)

    async def _make_room(self) -> None:
        """Evict the least recently used adapter without a lease once the capacity is reached."""
        while len(self._held) + len(self._retired) + self._moving >= self._capacity:
            idle = next((r for r in self._held.values() if r.identity not in self._leases), None)
            if idle is None:
                self._released.clear()
                await self._released.wait()
                continue
            await self._evict(idle)

    async def _evict(self, idle: Resident) -> None:
        # First out of our table: a request that comes now loads it again under a new id.
        del self._held[idle.identity]
        await self._unload(idle)
        _LOG.info("adapter evicted", extra={"adapter_id": idle.adapter_id})
