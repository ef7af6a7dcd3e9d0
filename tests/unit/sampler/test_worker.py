"""The sampling loop over memory and an engine that tests kill: who is suspected, and who is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tensafe.contracts.errors import HeRefused, Unavailable
from tensafe.contracts.execution import Execution, ExecutionMode
from tensafe.contracts.payloads import SamplePayload
from tensafe.contracts.sampling import SampleRequest, SampleResult, Sequence
from tensafe.metrics.counters import Counters
from tensafe.metrics.port import Metric, Metrics, NoMetrics, Series
from tensafe.operations.records import OpKind, OpState, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe_gpu.sampler.text import Texts
from tensafe_gpu.sampler.worker import SamplerSettings, SamplerWorker
from tests.unit.operations.world import BASE, SAMPLE, World

POISON = 66
QUICK = SamplerSettings(pause_s=0.01, receive_wait_s=0.02, heartbeat_s=0.02, stop_grace_s=0.2)


class Engine:
    """Answers with the prompt; POISON kills it, and with it all that is in it."""

    def __init__(self, before: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.healthy = True
        self.asked: list[int] = []
        self.aborted: list[int] = []
        self._before = before
        self._died = asyncio.Event()

    async def sample(
        self, request: SampleRequest, adapter: Any, *, cache_scope: str, policy: Any
    ) -> SampleResult:
        token = request.prompt[0]
        self.asked.append(token)
        if token == POISON:
            await asyncio.sleep(0.005)
            self.healthy = False
            self._died.set()
        answered = asyncio.create_task(self._answer(token))
        died = asyncio.create_task(self._died.wait())
        try:
            await asyncio.wait({answered, died}, return_when=asyncio.FIRST_COMPLETED)
            if not self.healthy:
                raise Unavailable("the engine has died")
            await answered
        except asyncio.CancelledError:
            self.aborted.append(token)
            raise
        finally:
            answered.cancel()
            died.cancel()
        sequence = Sequence(np.array([token], np.int32), np.zeros(1, np.float32), "length")
        return SampleResult((sequence,), execution=Execution(ExecutionMode.NONE, prompt_tokens=1))

    async def _answer(self, token: int) -> None:
        if self._before is not None:
            await self._before(token)
        await asyncio.sleep(0.02)


def submit(world: World, sampler: StreamRecord, prompts: list[int]) -> None:
    for seq, token in enumerate(prompts, 1):
        payload = SamplePayload(request=SampleRequest(prompt=(token,))).model_dump_json().encode()
        world.services.submissions.submit(sampler, Submission(seq, OpKind.SAMPLE, payload))


def states(world: World, sampler: StreamRecord) -> list[str]:
    return [operation.state.value for operation in world.log(sampler)]


def live(
    world: World,
    number: int,
    *,
    until: Callable[[], bool],
    engine: Engine | None = None,
    metrics: Metrics | None = None,
) -> Engine:
    """One sampler process from its start to its death, or until `until` and a SIGTERM."""

    async def life() -> Engine:
        chosen = engine or Engine()
        owner, stop = f"sampler-{number}", threading.Event()
        services = replace(world.open(), metrics=metrics or NoMetrics())
        services.workers.announce("sampler", BASE, owner, 0)
        worker = SamplerWorker(services, BASE, chosen, owner=owner, texts=Texts("none"), settings=QUICK)  # type: ignore[arg-type]
        running = asyncio.create_task(worker.run(stop))
        for _ in range(500):
            if until() or running.done():
                break
            maintain(world)
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(running, return_exceptions=True)
        services.workers.withdraw(owner)
        return chosen

    ended = asyncio.run(life())
    world.later(60)  # what it had in hand comes back
    maintain(world)
    return ended


def maintain(world: World) -> None:
    """What the supervisor does every few seconds."""
    world.services.dead_letters.consume(world.queues, world.services.ports.queue_specs)
    world.services.sweeper.sweep()


def all_ended(world: World, sampler: StreamRecord) -> Callable[[], bool]:
    return lambda: all(operation.state.final for operation in world.log(sampler))


def test_poison_is_set_aside_and_takes_nobody_with_it() -> None:
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [POISON, *range(1, 41)])
    for number in range(8):
        live(world, number, until=all_ended(world, sampler))
    found = states(world, sampler)
    assert found == ["failed", *["completed"] * 40]
    (letter,) = world.services.dead_letters.list()
    assert (letter.seq, letter.cause) == (1, "3 tries of it failed: its sampler was killed")


def test_three_deaths_at_the_hand_of_an_operator_are_no_poison() -> None:
    """As after `tensafe up` was killed: the supervisor forgives what the dead had in hand."""
    world = World()
    sampler = world.sampler()
    submit(world, sampler, list(range(1, 21)))

    async def forever(_token: int) -> None:
        await asyncio.sleep(1000)

    for number in range(4):
        engine = live(
            world,
            number,
            until=lambda: OpState.RUNNING in {op.state for op in world.log(sampler)},
            engine=Engine(forever),
        )
        assert engine.asked
        world.services.sweeper.forgive(f"sampler-{number}")
    assert world.services.dead_letters.list() == []
    live(world, 5, until=all_ended(world, sampler))
    assert set(states(world, sampler)) == {"completed"}


def test_a_long_sample_is_drawn_once() -> None:
    """However often the sweeper looks meanwhile, and whatever messages there are for it."""
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [7])

    async def long(_token: int) -> None:
        for _ in range(30):
            world.later(5)
            world.services.workers.announce("sampler", BASE, "sampler-0", 0)
            world.services.sweeper.sweep()
            world.services.doorbell.ring(sampler, 1)
            await asyncio.sleep(0.005)

    engine = live(world, 0, until=all_ended(world, sampler), engine=Engine(long))
    assert engine.asked == [7]
    assert states(world, sampler) == ["completed"]


def test_storage_that_fails_for_a_while_costs_no_tries() -> None:
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1, 2, 3])
    failures = iter(range(40))
    write = world.items.write

    def flaky(writes: Any) -> None:
        if any("res/" in str(getattr(one, "key", "")) for one in writes) and next(failures, None) is not None:
            raise Unavailable("full")
        write(writes)

    world.items.write = flaky  # type: ignore[method-assign]
    live(world, 0, until=all_ended(world, sampler))
    assert set(states(world, sampler)) == {"completed"}


def test_a_request_that_only_encryption_may_answer_is_counted_when_it_cannot() -> None:
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1, 2])
    counters = Counters()

    async def refused(token: int) -> None:
        if token == 1:
            raise HeRefused("he_timeout")

    refusal, ended = Series(Metric.HE_UNAVAILABLE, (("code", "he_timeout"),), 1.0), all_ended(world, sampler)
    until = lambda: ended() and refusal in counters.series()  # noqa: E731 - it is counted once it has ended
    live(world, 0, until=until, engine=Engine(refused), metrics=counters)
    assert states(world, sampler) == ["failed", "completed"]
    assert refusal in counters.series()


def test_a_cancelled_sample_is_aborted_in_the_engine() -> None:
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1, 2])

    async def cancelled_meanwhile(token: int) -> None:
        if token == 1:
            world.services.submissions.cancel(sampler, 1)
            await asyncio.sleep(100)

    chosen = Engine(cancelled_meanwhile)
    live(world, 0, until=lambda: bool(chosen.aborted), engine=chosen)
    assert chosen.aborted == [1]
    assert states(world, sampler) == ["cancelled", "completed"]
    assert world.queues.depth(SAMPLE) == 0


def test_on_sigterm_what_cannot_end_in_time_is_handed_back_at_once_and_no_try_is_counted() -> None:
    """As when Spot takes the machine: four times in a row are no poison, and nobody waits for a time-out."""
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1, 2])

    async def forever(_token: int) -> None:
        await asyncio.sleep(1000)

    async def life(number: int) -> Engine:
        engine, owner, stop = Engine(forever), f"sampler-{number}", threading.Event()
        services = world.open()
        services.workers.announce("sampler", BASE, owner, 0)
        worker = SamplerWorker(services, BASE, engine, owner=owner, texts=Texts("none"), settings=QUICK)  # type: ignore[arg-type]
        running = asyncio.create_task(worker.run(stop))
        while {op.state for op in world.log(sampler)} != {OpState.RUNNING}:
            await asyncio.sleep(0.01)
        assert worker.busy
        stop.set()
        await running
        services.workers.withdraw(owner)
        assert not worker.busy
        return engine

    for number in range(4):
        engine = asyncio.run(life(number))  # and no time passes: the clock of the queue stands still
        assert sorted(engine.aborted) == [1, 2]
        assert [(op.state, op.tries) for op in world.log(sampler)] == [(OpState.PENDING, 0)] * 2
    for operation in world.log(sampler):
        assert operation.owner is None
