"""Residency against a loader that keeps vLLM's books: never over capacity, never an adapter in use."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Coroutine
from typing import Any

import pytest

from tensafe_gpu.sampler.adapters import Adapter
from tensafe_gpu.sampler.private.adapter import PrivateAdapter
from tensafe_gpu.sampler.residency import Resident, ResidentAdapters


def adapter(name: str) -> Adapter:
    return Adapter(name, "1", {})


class Books:
    """What vLLM would hold; fails the test when the rules are broken."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: dict[int, str] = {}
        self.in_use: dict[int, int] = {}
        self.loads: list[str] = []
        self.fail: set[str] = set()
        self.gate: asyncio.Event | None = None
        self.residents = ResidentAdapters(capacity, self.load, self.unload)

    async def load(self, adapter_id: int, adapter: Adapter) -> str:
        assert adapter_id not in self.held
        assert len(self.held) < self.capacity
        self.loads.append(adapter.name)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if adapter.name in self.fail:
            raise ValueError(adapter.name)
        self.held[adapter_id] = adapter.name
        return f"/memory/{adapter_id}"

    async def unload(self, resident: Resident) -> None:
        assert not self.in_use.get(resident.adapter_id)
        await asyncio.sleep(0)
        del self.held[resident.adapter_id]

    async def use(self, name: str, turns: int = 1) -> None:
        async with self.residents.lease(adapter(name)) as resident:
            self.in_use[resident.adapter_id] = self.in_use.get(resident.adapter_id, 0) + 1
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
                    assert self.held[resident.adapter_id] == name
            finally:
                self.in_use[resident.adapter_id] -= 1


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work, 10)

    asyncio.run(bounded())


async def spin(turns: int = 10) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


def test_concurrent_requests_load_an_adapter_once() -> None:
    async def scenario() -> None:
        books = Books(2)
        await asyncio.gather(*(books.use("a") for _ in range(20)))
        assert books.loads == ["a"]
        assert "a@1" in books.residents

    run(scenario())


def test_the_least_recently_used_idle_adapter_leaves() -> None:
    async def scenario() -> None:
        books = Books(2)
        for name in ("a", "b", "a", "c"):
            await books.use(name)
        assert sorted(books.held.values()) == ["a", "c"]

    run(scenario())


def test_an_adapter_in_use_stays_and_the_next_one_waits() -> None:
    async def scenario() -> None:
        books = Books(1)
        async with books.residents.lease(adapter("a")):
            waiting = asyncio.create_task(books.use("b"))
            await spin()
            assert list(books.held.values()) == ["a"]
            assert not waiting.done()
        await waiting
        assert list(books.held.values()) == ["b"]

    run(scenario())


def test_a_failed_load_fails_its_requests_alone_and_can_be_tried_again() -> None:
    async def scenario() -> None:
        books = Books(1)
        books.fail = {"bad"}
        work: list[Awaitable[None]] = [books.use("bad"), books.use("bad"), books.use("good")]
        first, second, third = await asyncio.gather(*work, return_exceptions=True)
        assert isinstance(first, ValueError)
        assert isinstance(second, ValueError)
        assert third is None
        books.fail = set()
        await books.use("bad")

    run(scenario())


def test_an_adapter_is_forgotten_unless_it_is_in_use() -> None:
    async def scenario() -> None:
        books = Books(2)
        await books.use("a")
        async with books.residents.lease(adapter("b")):
            for identity in ("a@1", "b@1", "c@1"):
                await books.residents.forget(identity)
            assert list(books.held.values()) == ["b"]
            assert list(books.residents) == ["b@1"]
        await books.residents.forget("b@1")
        assert not books.held
        await books.use("a")
        assert books.loads == ["a", "b", "a"]

    run(scenario())


def test_a_cancelled_request_does_not_lose_count_of_a_load() -> None:
    async def scenario() -> None:
        books = Books(1)
        books.gate = asyncio.Event()
        task = asyncio.create_task(books.use("a"))
        await spin()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        books.gate.set()
        await spin()
        assert "a@1" in books.residents
        await books.use("b")
        assert list(books.held.values()) == ["b"]

    run(scenario())


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_any_order_of_requests_and_cancellations_keeps_the_rules(capacity: int) -> None:
    async def scenario() -> None:
        books, choose = Books(capacity), random.Random(capacity)
        books.fail = {"f"}
        tasks = []
        for _ in range(300):
            tasks.append(asyncio.create_task(books.use(choose.choice("abcdef"), choose.randrange(4))))
            if choose.random() < 0.1:
                choose.choice(tasks).cancel()
            await spin(choose.randrange(3))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(r) for r in results} <= {type(None), ValueError, asyncio.CancelledError}
        assert len(books.residents) == len(books.held) <= capacity
        assert not any(books.in_use.values())

    run(scenario())


def test_what_has_failed_is_opened_anew_while_others_still_have_it() -> None:
    async def scenario() -> None:
        books = Books(3)
        release = asyncio.Event()
        seen: list[int] = []

        async def slow() -> None:
            async with books.residents.lease(adapter("a")) as resident:
                seen.append(resident.adapter_id)
                await release.wait()

        async def failing() -> None:
            async with books.residents.lease(adapter("a")) as resident:
                seen.append(resident.adapter_id)
                await books.residents.retire(resident)
                await books.residents.retire(resident)

        others = [asyncio.create_task(slow()) for _ in range(2)]
        await spin()
        await failing()
        assert sorted(books.held.values()) == ["a"]  # two requests still have it
        await books.use("a")
        assert books.loads == ["a", "a"]
        assert set(seen) == {1}
        assert set(books.held) == {1, 2}
        release.set()
        await asyncio.gather(*others)
        assert set(books.held) == {2}
        await books.use("a")
        assert books.loads == ["a", "a"]

    run(scenario())


def test_a_request_that_waited_for_what_was_retired_meanwhile_gets_the_new_one() -> None:
    async def scenario() -> None:
        books = Books(2)

        async def failing() -> None:
            async with books.residents.lease(adapter("a")) as resident:
                await books.residents.retire(resident)

        await asyncio.gather(failing(), failing(), *(books.use("a") for _ in range(4)))
        assert len(books.held) <= 1

    run(scenario())


def test_what_is_retired_keeps_its_place_until_it_is_unloaded() -> None:
    async def scenario() -> None:
        books = Books(1)
        release = asyncio.Event()

        async def slow() -> None:
            async with books.residents.lease(adapter("a")) as resident:
                await books.residents.retire(resident)
                await release.wait()

        first = asyncio.create_task(slow())
        await spin()
        second = asyncio.create_task(books.use("b"))
        await spin()
        assert books.loads == ["a"]
        release.set()
        await asyncio.gather(first, second)
        assert books.loads == ["a", "b"]

    run(scenario())


def test_others_come_and_go_while_a_private_adapter_is_opened() -> None:
    async def scenario() -> None:
        books = Books(3)
        opening = asyncio.Event()

        async def load(adapter_id: int, one: Adapter | PrivateAdapter) -> str:
            if isinstance(one, PrivateAdapter):
                await opening.wait()
                return one.name
            return await books.load(adapter_id, one)

        books.residents = ResidentAdapters(2, load, books.unload)

        async def private() -> None:
            async with books.residents.lease(PrivateAdapter("p", "1", {})):
                pass

        first = asyncio.create_task(private())
        await spin()
        await books.use("a")
        await books.use("b")  # a makes room; the place of what is being opened is not to be had
        await books.residents.forget("b@1")
        assert books.held == {}
        opening.set()
        await first
        assert len(books.residents) == 1

    run(scenario())
