"""The sampling loop where storage fails it, where a message is nobody's, and where it is full."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tensafe.contracts.errors import HeRefused, InvalidRequest, TensafeError, Unavailable
from tensafe.correlation import correlated
from tensafe.operations.records import OpState
from tensafe.services import Services
from tensafe.storage.ports import ConditionFailed, Message, Put, Write
from tensafe_gpu.sampler.beginnings import Beginnings
from tensafe_gpu.sampler.in_flight import Held
from tensafe_gpu.sampler.text import Texts
from tensafe_gpu.sampler.threads import StorageThreads
from tensafe_gpu.sampler.worker import SamplerSettings, SamplerWorker
from tests.unit.operations.world import BASE, SAMPLE, World
from tests.unit.sampler.test_worker import QUICK, Engine, maintain, states, submit

UNWATCHED = replace(QUICK, heartbeat_s=30.0)
"""A heartbeat reads operations too, at moments of its own."""
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def begins(writes: list[Write]) -> bool:
    return any(isinstance(one, Put) and one.body.get("state") == "running" for one in writes)


class Twice:
    """A queue that hands out each message twice at once, and whose first delete fails."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.failed = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def receive(self, *given: Any, **named: Any) -> list[Message]:
        return [
            one
            for found in self._inner.receive(*given, **named)
            for one in (found, replace(found, receipt="another"))
        ]

    def delete(self, queue: str, receipt: str) -> None:
        if not self.failed:
            self.failed += 1
            raise Unavailable("x")
        if receipt != "another":
            self._inner.delete(queue, receipt)


class LosesAnswers:
    """Items that take what begins a sample and do not say so, `times` times; then nothing for a while."""

    def __init__(self, inner: Any, times: int, away: int = 0) -> None:
        self._inner, self._times, self._away = inner, times, away
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_relaxed(self, writes: list[Write]) -> None:
        self._inner.write_relaxed(writes)
        if begins(writes) and self.lost < self._times:
            self.lost += 1
            raise Unavailable("x")

    def get(self, key: Any) -> Any:
        if self.lost and self._away and key.sort.startswith("op/"):
            self._away -= 1
            raise Unavailable("x")
        return self._inner.get(key)


async def served(
    world: World,
    services: Services,
    engine: Engine,
    until: Callable[[], bool],
    settings: SamplerSettings = QUICK,
    owner: str = "sampler-1",
) -> None:
    """One sampler over these services, until `until` and a SIGTERM."""
    stop = threading.Event()
    services.workers.announce("sampler", BASE, owner, 0)
    texts: Any = Texts("none")
    worker = SamplerWorker(services, BASE, engine, owner=owner, texts=texts, settings=settings)  # type: ignore[arg-type]
    running = asyncio.create_task(worker.run(stop))
    async with asyncio.timeout(20):
        while not until():
            assert not running.done()
            maintain(world)
            await asyncio.sleep(0.01)
        while worker.busy:
            await asyncio.sleep(0.01)
        stop.set()
        await running


def ended(world: World, sampler: Any) -> Callable[[], bool]:
    return lambda: all(one.state.final for one in world.log(sampler))


def test_a_second_message_that_cannot_be_deleted_leaves_the_first_one_served() -> None:
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1])
    queues = Twice(world.queues)
    asyncio.run(served(world, world.open(queues=queues), Engine(), ended(world, sampler)))
    assert queues.failed == 1
    assert states(world, sampler) == ["completed"]


@pytest.mark.parametrize(
    "body", [{"hello": 1}, {"stream": "s-1:sample:0", "seq": "x"}, {"stream": "no id!", "seq": "y"}]
)
def test_a_message_that_is_not_ours_ends_nobody_and_is_set_aside(body: dict[str, Any]) -> None:
    world = World()
    sampler = world.sampler()
    world.queues.send(SAMPLE, body)
    submit(world, sampler, [1, 2])
    asyncio.run(served(world, world.open(), Engine(), ended(world, sampler)))
    assert states(world, sampler) == ["completed"] * 2
    for _ in range(3):  # then it is the dead queue's, whose consumer is not stopped by it either
        world.later(60)
        world.queues.receive(SAMPLE, visibility_s=1)
    world.later(60)
    specs = world.services.ports.queue_specs
    assert world.services.dead_letters.consume(world.queues, specs) == 1
    assert world.queues.depth(SAMPLE) == 0


def test_one_that_is_full_hears_the_signal_to_stop() -> None:
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1, 2, 3])

    async def forever(_token: int) -> None:
        await asyncio.sleep(1000)

    async def life() -> None:
        engine, stop = Engine(forever), threading.Event()
        services = world.open()
        services.workers.announce("sampler", BASE, "sampler-1", 0)
        full = replace(QUICK, max_in_flight=2)
        worker = SamplerWorker(services, BASE, engine, owner="sampler-1", texts=Texts("none"), settings=full)  # type: ignore[arg-type]
        running = asyncio.create_task(worker.run(stop))
        async with asyncio.timeout(20):
            while len(engine.asked) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            stop.set()
            await running

    asyncio.run(life())
    assert [(op.state, op.tries) for op in world.log(sampler)] == [(OpState.PENDING, 0)] * 3


@pytest.mark.parametrize("away", [0, 5], ids=["then-there", "then-away-for-a-while"])
def test_a_beginning_whose_answer_is_lost_is_no_try_and_nobody_waits_for_us(away: int) -> None:
    """Else the message would be left to us by whoever hears it next, and we have handed it back."""
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1])
    items = LosesAnswers(world.items, 3, away)
    asyncio.run(served(world, world.open(items=items), Engine(), ended(world, sampler)))
    assert items.lost == 3
    assert [(op.state, op.tries) for op in world.log(sampler)] == [(OpState.COMPLETED, 1)]


class Slow:
    """Items that take what begins a sample a while after it was asked, once, whoever gave up meanwhile."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.asked, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_relaxed(self, writes: list[Write]) -> None:
        if not self.asked.is_set() and begins(writes):
            self.asked.set()
            self.go_on.wait(10)
            self._inner.write_relaxed(writes)
            return self.done.set()
        return self._inner.write_relaxed(writes)  # type: ignore[no-any-return]


class HandedBack:
    """A queue that notes how an operation stands as its message is handed back: to another sampler, maybe."""

    def __init__(self, inner: Any, stands: Callable[[], OpState]) -> None:
        self._inner, self._stands, self.found = inner, stands, list[OpState]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def extend(self, queue: str, receipt: str, visibility_s: float) -> None:
        if visibility_s == 0:
            self.found.append(self._stands())
        self._inner.extend(queue, receipt, visibility_s)


class Late:
    """Items that time out as a sample is begun, and take the write `looks` reads of an operation later."""

    def __init__(self, inner: Any, looks: int) -> None:
        self._inner, self._looks = inner, looks
        self.pending: list[list[Write]] = []
        self._asked = self.too_late = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_relaxed(self, writes: list[Write]) -> None:
        if self._asked or not begins(writes):
            return self._inner.write_relaxed(writes)  # type: ignore[no-any-return]
        self._asked = True
        self.pending.append(writes)
        raise Unavailable("timed out")

    def get(self, key: Any) -> Any:
        if self.pending and key.sort.startswith("op/"):
            self._looks -= 1
            if self._looks < 0:
                self.land()
        return self._inner.get(key)

    def land(self) -> None:
        """Take the write, if it has not been taken."""
        if self.pending:
            try:
                self._inner.write_relaxed(self.pending.pop())
            except ConditionFailed:
                self.too_late = True


def test_a_beginning_that_is_on_its_way_when_it_stops_is_put_back_too() -> None:
    """Else it would stand as this sampler's, and the next one would drop its message."""
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1])
    items = Slow(world.items)

    async def life() -> None:
        stop, services = threading.Event(), world.open(items=items)
        services.workers.announce("sampler", BASE, "sampler-1", 0)
        quick: Any = replace(QUICK, stop_grace_s=1.0)
        worker = SamplerWorker(
            services, BASE, Engine(), owner="sampler-1", texts=Texts("none"), settings=quick
        )  # type: ignore[arg-type]
        running = asyncio.create_task(worker.run(stop))
        while not items.asked.is_set():
            await asyncio.sleep(0.01)
        (held,) = worker._in_flight.all()
        stop.set()
        while not (held.task is not None and held.task.done()):  # cancelled
            await asyncio.sleep(0.01)
        items.go_on.set()
        await running

    asyncio.run(life())
    assert items.done.wait(10)
    (operation,) = world.log(sampler)
    assert (operation.state, operation.tries, operation.owner) == (OpState.PENDING, 0, None)
    assert world.queues.depth(SAMPLE) == 1


@pytest.mark.parametrize("looks", [0, 1, 2, 100])
def test_a_beginning_that_comes_late_is_put_back_or_begins_nothing(looks: int) -> None:
    """Storage has timed out, and takes the write after that: at a look at it, or once its message is back."""
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1])
    items = Late(world.items, looks)

    def stands() -> OpState:
        items.land()  # by now at the latest
        return world.op(sampler, 1).state

    queues = HandedBack(world.queues, stands)
    services = world.open(items=items, queues=queues)
    asyncio.run(served(world, services, Engine(), ended(world, sampler), UNWATCHED))
    assert queues.found == [OpState.PENDING]
    assert items.too_late == (looks >= 2)
    (operation,) = world.log(sampler)
    assert (operation.state, operation.tries) == (OpState.COMPLETED, 1)


def test_what_an_earlier_try_has_left_begun_is_put_back_and_not_fenced() -> None:
    """It would stand as this sampler's for good: its message is another one's from here on."""
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1])
    outcomes = world.services.outcomes
    left = outcomes.start(world.op(sampler, 1), (), owner="sampler-1")
    threads = StorageThreads()
    beginnings = Beginnings(outcomes, "sampler-1", in_thread=threads, healthy=lambda: True, pause_s=0.01)
    (message,) = world.queues.receive(SAMPLE, visibility_s=30)
    held = Held(message)
    held.begun = outcomes.begun(left, owner="sampler-1")  # whose write had no answer
    asyncio.run(beginnings.put_back(held, counted=False))
    found = world.op(sampler, 1)
    assert (found.state, found.owner) == (OpState.PENDING, None)
    with pytest.raises(ConditionFailed):
        outcomes.start(left, (), owner="sampler-1")


class HearsOnce:
    """A queue whose other listeners are quicker after the first message."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._heard = inner, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def receive(self, *given: Any, **named: Any) -> list[Message]:
        found: list[Message] = [] if self._heard else self._inner.receive(*given, **named)
        self._heard = self._heard or bool(found)
        return found


def test_a_late_beginning_keeps_no_other_sampler_from_it() -> None:
    """What stands as begun by a sampler that lives is left to it, and this one does not hear of it again."""
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1])
    items = Late(world.items, 100)

    def stands() -> OpState:
        items.land()
        return world.op(sampler, 1).state

    queues = HandedBack(world.queues, stands)
    first = world.open(items=items, queues=HearsOnce(queues))
    engines = Engine(), Engine()

    async def life() -> None:
        once, both = (
            served(world, services, engine, ended(world, sampler), UNWATCHED, name)
            for services, engine, name in (
                (first, engines[0], "sampler-1"),
                (world.open(), engines[1], "sampler-2"),
            )
        )
        waiting = asyncio.create_task(once)
        while not queues.found:
            await asyncio.sleep(0.01)
        await asyncio.gather(waiting, both)

    asyncio.run(life())
    assert [engine.asked for engine in engines] == [[], [1]]


@pytest.mark.parametrize("landed", [False, True], ids=["not-taken", "taken-unsaid"])
@pytest.mark.parametrize("error", [HeRefused("he_timeout"), InvalidRequest("no")], ids=["refused", "invalid"])
def test_a_failure_that_storage_does_not_take_leaves_nothing_begun(error: TensafeError, landed: bool) -> None:
    """The message is handed back; the operation must not stand as this sampler's then."""
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1])
    queues = HandedBack(world.queues, lambda: world.op(sampler, 1).state)
    services = world.open(queues=queues)
    fail, failed = services.outcomes.fail, list[int]()

    def failing(*given: Any) -> None:
        failed.append(1)
        if len(failed) > 2 or landed:
            fail(*given)
        if len(failed) <= 2:
            raise Unavailable("x")

    async def refuses(_token: int) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services.outcomes, "fail", failing)
        asyncio.run(served(world, services, Engine(refuses), ended(world, sampler)))
    assert [op.state for op in world.log(sampler)] == [OpState.FAILED]
    assert len(failed) == (1 if landed else 3)
    assert queues.found == ([OpState.FAILED] if landed else [OpState.PENDING] * 2)


def test_a_cancellation_is_not_taken_back_with_a_beginning_that_never_was() -> None:
    """Both are the operation's next version."""
    world = World()
    sampler = world.sampler()
    submit(world, sampler, [1])
    outcomes, operation = world.services.outcomes, world.op(sampler, 1)
    world.services.submissions.cancel(sampler, 1)
    begun = outcomes.begun(operation, owner="sampler-1")
    assert begun.version == world.op(sampler, 1).version
    assert not outcomes.put_back(begun, counted=False)
    assert states(world, sampler) == ["cancelled"]


def test_a_sample_is_a_span_below_its_request() -> None:
    world = World()
    sampler = world.sampler()
    with correlated("req-0123456789abcdef", TRACEPARENT):
        submit(world, sampler, [1])
    spans: list[tuple[str, str | None, dict[str, Any]]] = []

    class Tracer:
        @contextmanager
        def span(self, name: str, parent: str | None, **facts: Any) -> Iterator[None]:
            spans.append((name, parent, facts))
            yield

    services = replace(world.open(), tracer=Tracer())
    asyncio.run(served(world, services, Engine(), ended(world, sampler)))
    assert spans == [("sample", TRACEPARENT, {"stream": sampler.stream_id, "seq": 1})]
