"""Trainer and sampler, by their own `serve`, are protected while they work and not while they wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tensafe.contracts.base_models import ModelInfo
from tensafe.contracts.execution import Execution, ExecutionMode
from tensafe.contracts.payloads import SamplePayload
from tensafe.contracts.sampling import SampleRequest, SampleResult, Sequence
from tensafe.operations.records import OpKind, OpState
from tensafe.operations.submissions import Submission
from tensafe.services import Services
from tensafe_gpu import protection
from tensafe_gpu.sampler.__main__ import serve as serve_samples
from tensafe_gpu.trainer.__main__ import serve as serve_training
from tensafe_gpu.trainer.engine import Engine
from tensafe_gpu.trainer.restoring import Restorer
from tests.support import training_log
from tests.unit.operations.world import BASE, World
from tests.unit.tasks.test_protection import Agent, agent

__all__ = ["agent"]

pytestmark = pytest.mark.sockets

RUN = "s-1:train:0"
WAITED_S = 20.0
SETTINGS: Any = SimpleNamespace(
    threads=1, device="cpu", dtype="float32", load_limit_s=60.0, private_adapters=False, private_pass_s=3.0
)


@pytest.fixture
def protected(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[bool]]:
    """What the agent was asked for so far: by a keeper that looks often, and gives it up soon."""
    monkeypatch.setenv(protection.AGENT_VARIABLE, agent.uri)
    often = partial(protection.ProtectionKeeper, look_s=0.02, idle_s=0.1)
    monkeypatch.setattr(protection, "ProtectionKeeper", often)
    return lambda: [body["ProtectionEnabled"] for _, body in agent.asked]


def becomes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAITED_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def info(tmp_path: Path) -> ModelInfo:
    path = training_log.smallest_model(tmp_path / "model")
    return ModelInfo(
        name=BASE, path=path, arch="LlamaForCausalLM", vocab_size=training_log.VOCAB, max_context_tokens=64
    )


@contextmanager
def served(run: Callable[[threading.Event], object]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WAITED_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("at_work", [(Engine, "optim_step"), (Restorer, "restore")])
def test_a_trainer_is_protected_while_it_works(
    protected: Callable[[], list[bool]],
    info: ModelInfo,
    monkeypatch: pytest.MonkeyPatch,
    at_work: tuple[type, str],
) -> None:
    """In the middle of an operation, and of a restore; and not while it holds a run that waits."""
    world, seen = World(), list[list[bool]]()
    target, name = at_work
    original = getattr(target, name)

    def slow(*args: Any, **given: Any) -> Any:
        becomes_true(lambda: bool(protected()))
        seen.append(protected())
        return original(*args, **given)

    monkeypatch.setattr(target, name, slow)
    services: Services = replace(world.open(), models={BASE: info})
    with served(lambda stop: serve_training(services, BASE, SETTINGS, stop)):
        assert becomes_true(lambda: bool(world.services.workers.list()))
        time.sleep(0.2)
        assert protected() == []
        training_log.begin(world.services, RUN, BASE)
        training_log.submit(world.services, RUN, 1, training_log.optim_step())
        assert becomes_true(lambda: world.op(world.stream(RUN), 1).state is OpState.COMPLETED)
        assert becomes_true(lambda: not protected()[-1])
        assert world.services.leases.held(RUN, margin_s=0)
    assert seen[0][0] is True
    assert protected()[-1] is False


class Sampling:
    """An engine whose requests take until something is true."""

    healthy = True

    def __init__(self, until: Callable[[], bool]) -> None:
        self._until = until

    async def start(self, *_: object, **__: object) -> Sampling:
        return self

    async def sample(self, *_: object, **__: object) -> SampleResult:
        await asyncio.to_thread(becomes_true, self._until)
        drawn = Sequence(np.array([65], np.int32), np.zeros(1, np.float32), "length")
        return SampleResult((drawn,), execution=Execution(ExecutionMode.NONE, prompt_tokens=1))

    def resident(self) -> list[str]:
        return []

    async def close(self) -> None: ...


def test_a_sampler_is_protected_while_it_has_requests(
    protected: Callable[[], list[bool]], info: ModelInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, seen = World(), list[list[bool]]()

    def until() -> bool:
        seen.append(protected())
        return bool(protected())

    monkeypatch.setattr("tensafe_gpu.sampler.engine.SamplingEngine", Sampling(until))
    services = replace(world.open(), models={BASE: info})

    def run(stop: threading.Event) -> None:
        asyncio.run(serve_samples(services, info, SETTINGS, "sampler-1", stop))

    with served(run):
        assert becomes_true(lambda: bool(world.services.workers.list()))
        time.sleep(0.2)
        assert protected() == []
        sampler = world.sampler()
        payload = SamplePayload(request=SampleRequest(prompt=(5,))).model_dump_json().encode()
        world.services.submissions.submit(sampler, Submission(1, OpKind.SAMPLE, payload))
        assert becomes_true(lambda: world.op(sampler, 1).state is OpState.COMPLETED)
        assert becomes_true(lambda: not protected()[-1])
    assert seen[-1][0] is True
    assert protected()[-1] is False
