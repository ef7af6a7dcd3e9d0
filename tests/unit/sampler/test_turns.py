"""Who runs beside whom after an engine has died."""

from __future__ import annotations

import asyncio

import pytest

from tensafe_gpu.sampler.turns import SUSPECTS, Turns


async def most_together(tries: list[int]) -> dict[int, int]:
    """For each number of tries, how many others of any kind were running beside one of it at most."""
    turns, running, most = Turns(), list[int](), dict.fromkeys(tries, 0)

    async def one(count: int) -> None:
        async with turns.take(count):
            running.append(count)
            for kind in running:
                most[kind] = max(most[kind], len(running) - 1)
            await asyncio.sleep(0.001)
            running.remove(count)

    await asyncio.wait_for(asyncio.gather(*(one(count) for count in tries)), 10)
    return most


def test_the_innocent_share() -> None:
    assert asyncio.run(most_together([0] * 50)) == {0: 49}


def test_those_of_one_death_run_in_small_groups() -> None:
    assert asyncio.run(most_together([1] * 50)) == {1: SUSPECTS - 1}


@pytest.mark.parametrize("tries", [[2, 0, 0, 0, 1, 2, 0, 1], [0] * 20 + [2, 2, 3] + [1] * 20])
def test_those_of_more_deaths_run_alone(tries: list[int]) -> None:
    most = asyncio.run(most_together(tries))
    assert {count: most[count] for count in most if count > 1} == {
        count: 0 for count in set(tries) if count > 1
    }


def test_a_cancelled_wait_leaves_no_trace() -> None:
    async def scenario() -> None:
        turns = Turns()
        async with turns.take(0):
            waiting = asyncio.create_task(turns.take(2).__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            async with asyncio.timeout(1), turns.take(0):
                pass

    asyncio.run(scenario())
