"""Two samplers, and a queue that loses, doubles and holds back messages: each sample ends once, as it must.

While nobody dies each is drawn once too: a second message for it finds it in hand, running or ended. When an
engine dies with its process, what was in it is drawn again, and still ends once. The runs' own queue:
test_two_workers.py.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from typing import Any, Final

import numpy as np
import pytest

from tensafe.contracts.errors import Unavailable
from tensafe.contracts.execution import Execution, ExecutionMode
from tensafe.contracts.payloads import SamplePayload
from tensafe.contracts.sampling import SampleRequest, SampleResult, Sequence
from tensafe.operations import completions
from tensafe.operations.records import OpKind, OpState, StreamRecord
from tensafe.operations.submissions import Submission
from tensafe_gpu.sampler.text import Texts
from tensafe_gpu.sampler.worker import SamplerSettings, SamplerWorker
from tests.chaos.twenty_runs import seeds
from tests.support.faulty_ports import BadQueue
from tests.unit.operations.world import BASE, World

SAMPLES: Final = 60
QUICK: Final = SamplerSettings(
    pause_s=0.01, receive_wait_s=0.01, heartbeat_s=0.02, max_in_flight=8, stop_grace_s=0.2
)
WAITED_S: Final = 20
"""Longer than a marker waits for its reminder, and a message for its sampler; less than an announcement."""


class Engine:
    """Answers with the prompt; dies when it is asked for the `last`-th time, with all that is in it."""

    def __init__(self, rng: random.Random, asked: list[int], last: int | None = None) -> None:
        self.healthy = True
        self._rng, self._asked, self._left = rng, asked, last

    async def sample(self, request: SampleRequest, adapter: Any, **_: Any) -> SampleResult:
        token = request.prompt[0]
        self._asked.append(token)
        if self._left is not None:
            self._left -= 1
            self.healthy = self._left > 0
        await asyncio.sleep(self._rng.uniform(0, 0.02))
        if not self.healthy:
            raise Unavailable("the engine has died")
        sequence = Sequence(np.array([token], np.int32), np.zeros(1, np.float32), "length")
        return SampleResult((sequence,), execution=Execution(ExecutionMode.NONE, prompt_tokens=1))


class Shift:
    """Two samplers at a time over one bad queue; whoever dies has a successor."""

    def __init__(self, seed: int, deaths: list[int]) -> None:
        self.rng = random.Random(seed)
        self.world = World()
        self.queues = BadQueue(self.world.queues, self.rng, lost=0.3, doubled=0.3, held_back=0.2)
        self.edge = self.world.open(queues=self.queues)
        self.sampler = self.world.sampler()
        self.asked: list[int] = []
        self.deaths, self.hired = deaths, 0

    async def work(self) -> None:
        """Until every sample has ended."""
        stop = threading.Event()
        waiting = list(range(1, SAMPLES + 1))
        self.rng.shuffle(waiting)
        places: dict[str, asyncio.Task[None]] = {}
        for _ in range(2000):
            for owner in [owner for owner, life in places.items() if life.done()]:
                assert isinstance(places.pop(owner).exception(), Unavailable)
                self.edge.workers.withdraw(owner)
            while len(places) < 2:
                owner, life = self._hire(stop)
                places[owner] = life
            for _ in range(min(3, len(waiting))):
                self._submit(waiting.pop())
            await asyncio.sleep(0.01)
            if not waiting and all(op.state.final for op in self.world.log(self.sampler)):
                stop.set()
                await asyncio.gather(*places.values())
                return
            self._time_passes(list(places))
        raise AssertionError("samples stay open")

    def _hire(self, stop: threading.Event) -> tuple[str, asyncio.Task[None]]:
        self.hired += 1
        owner = f"sampler-{self.hired}"
        engine = Engine(self.rng, self.asked, self.deaths.pop() if self.deaths else None)
        services = self.world.open(queues=self.queues)
        services.workers.announce("sampler", BASE, owner, 0)
        texts: Any = Texts("none")
        chosen: Any = engine
        worker = SamplerWorker(services, BASE, chosen, owner=owner, texts=texts, settings=QUICK)
        return owner, asyncio.create_task(worker.run(stop))

    def _submit(self, seq: int) -> None:
        payload = (
            SamplePayload(request=SampleRequest(prompt=(seq,)), answer="json").model_dump_json().encode()
        )
        self.edge.submissions.submit(self.sampler, Submission(seq, OpKind.SAMPLE, payload))

    def _time_passes(self, owners: list[str]) -> None:
        """Those who live say so; messages in flight run out; sweeper and consumer of dead letters come."""
        self.world.later(WAITED_S)
        for owner in owners:
            self.edge.workers.announce("sampler", BASE, owner, 0)
        self.edge.dead_letters.consume(self.queues, self.edge.ports.queue_specs)
        self.edge.sweeper.sweep()


def check_once_each(shift: Shift, sampler: StreamRecord) -> None:
    world = shift.world
    log = world.log(sampler)
    assert [op.seq for op in log] == list(range(1, SAMPLES + 1))
    assert {op.state for op in log} == {OpState.COMPLETED}
    ended = [one.seq for one in completions.since(world.items, sampler.stream_id, 0, 0)]
    assert sorted(ended) == list(range(1, SAMPLES + 1))
    for op in log:
        answer = json.loads(world.services.outcomes.result(sampler, op).data)
        assert [one["tokens"] for one in answer["sequences"]] == [[op.seq]]
    assert world.markers() == []
    assert world.services.dead_letters.list() == []
    assert min(shift.queues.counts.values()) >= 1, shift.queues.counts


@pytest.mark.parametrize("seed", seeds(2))
def test_with_a_bad_queue_every_sample_is_drawn_once_and_ends_once(seed: int) -> None:
    shift = Shift(seed, deaths=[])
    asyncio.run(shift.work())
    check_once_each(shift, shift.sampler)
    assert sorted(shift.asked) == list(range(1, SAMPLES + 1))


@pytest.mark.parametrize("seed", seeds(2))
def test_with_a_bad_queue_and_engines_that_die_every_sample_ends_once(seed: int) -> None:
    shift = Shift(seed, deaths=[12, 7])
    asyncio.run(shift.work())
    check_once_each(shift, shift.sampler)
    assert shift.hired == 4
    assert len(shift.asked) > SAMPLES
