"""The official SDK, unmodified, against the application over stores in memory; no socket is opened."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tinker
from tinker import types

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tensafe.auth.limits import CACHE_S
from tensafe.auth.windows import WINDOW_S
from tensafe.contracts.errors import IntegrityError, Unavailable
from tensafe.contracts.payloads import JSON, PROTOBUF, SavePayload
from tensafe.operations.records import Operation, OpKind, OpState, Result, StreamRecord
from tensafe.wire.forward_backward import decode_request
from tensafe.wire.results import encode_forward_backward
from tests.support.sdk_in_memory import Edge, service_client
from tests.unit.operations.world import BASE, TENANT, World

CHUNK = 1024
PLACES = 8


class Trainer(threading.Thread):
    """Ends every operation of every run of the tenant in its turn, and computes nothing."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.world = world
        self.done = threading.Event()
        self.paused = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.01):
            if self.paused.is_set():
                continue
            for record in self.world.services.streams.list_runs(TENANT):
                for expected, operation in enumerate(self.world.log(record)):
                    if operation.seq != expected:
                        break
                    if operation.state is OpState.PENDING:
                        self.end(record.stream_id, operation)

    def end(self, run_id: str, operation: Operation) -> None:
        outcomes, stream = self.world.services.outcomes, self.world.stream(run_id)
        running = outcomes.start(operation, ())
        result = Result(JSON, b'{"metrics":{"steps":1}}')
        if operation.kind is OpKind.CREATE:
            result = Result(JSON, b'{"model_id":"%s"}' % run_id.encode())
        elif operation.kind is OpKind.FORWARD_BACKWARD:
            data = decode_request(outcomes.payload(stream, operation.seq)).request.data
            logprobs = [np.zeros(datum.tokens.shape, np.float32) for datum in data]
            result = Result(PROTOBUF, encode_forward_backward(logprobs, {"loss:sum": 0.0}))
        elif operation.kind is OpKind.SAVE_SAMPLER:
            save = SavePayload.model_validate_json(outcomes.payload(stream, operation.seq))
            assert save.sampling_session_id is not None
            self.world.sampler(save.sampling_session_id)
            result = Result(JSON, b'{"sampling_session_id":"%s"}' % save.sampling_session_id.encode())
        outcomes.complete(stream, running, result)


@pytest.fixture
def edge(world: World) -> Edge:
    return Edge(create_app(world.services, EdgeLimits(long_poll_s=0.2, waits_per_tenant=PLACES)))


@pytest.fixture
def key(world: World) -> str:
    return world.services.api_keys.create(TENANT, ["train", "sample"])[0]


@pytest.fixture
def service(edge: Edge, key: str) -> Iterator[tinker.ServiceClient]:
    with service_client(edge, key) as client:
        yield client


@pytest.fixture
def trainer(world: World) -> Iterator[Trainer]:
    started = Trainer(world)
    started.start()
    yield started
    started.done.set()
    started.join()


@pytest.fixture
def training(trainer: Trainer, service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client(BASE, rank=4, seed=1).result(timeout=20)


def datum(token: int = 2) -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints([1, token]),
        loss_fn_inputs={"target_tokens": np.array([2, 3]), "weights": np.ones(2, np.float32)},
    )


@pytest.mark.parametrize("bad", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
def test_a_refused_chunk_fails_its_batch_and_the_client_goes_on(
    training: tinker.TrainingClient, bad: int
) -> None:
    """The SDK sends the first chunk last, and never once another was answered with a 4xx."""
    data = [datum()] * (2 * CHUNK + 10)
    data[bad] = datum(10**6)
    failed = training.forward_backward(data, "cross_entropy")
    with pytest.raises(tinker.RequestFailedError) as caught:
        failed.result(timeout=20)
    chunk, place = divmod(bad, CHUNK)
    assert f"data[{place}].model_input" in str(caught.value)
    assert f"seq_id {chunk + 1}" in str(caught.value)
    assert caught.value.category is types.RequestErrorCategory.User
    again = training.forward_backward([datum()] * (CHUNK + 1), "cross_entropy")
    step = training.optim_step(types.AdamParams())
    assert len(again.result(timeout=20).loss_fn_outputs) == CHUNK + 1
    assert step.result(timeout=20).metrics == {"steps": 1}


def test_a_refusal_of_one_request_with_one_turn_is_told_at_once_and_the_client_goes_on(
    training: tinker.TrainingClient,
) -> None:
    with pytest.raises(tinker.UnprocessableEntityError):
        training.optim_step(types.AdamParams(beta1=1.0)).result(timeout=20)
    with pytest.raises(tinker.UnprocessableEntityError):
        training.save_state("a/b").result(timeout=20)
    assert training.optim_step(types.AdamParams()).result(timeout=20).metrics == {"steps": 1}


def test_it_waits_where_the_tenant_has_used_its_limit_and_goes_on(
    world: World, edge: Edge, training: tinker.TrainingClient
) -> None:
    """A 429 is asked again after Retry-After; it leaves no tombstone, and what comes next keeps its turn."""
    quotas = world.services.quotas
    world.now_ms += (-world.now_ms % (WINDOW_S * 1000)) + WINDOW_S * 1000 - 500  # the window soon ends
    quotas.limits.change(TENANT, {"operations_per_s": 1})
    world.later(CACHE_S // WINDOW_S * WINDOW_S)
    for _ in range(WINDOW_S):
        quotas.admit_request(TENANT)
    edge.on_answer = lambda status: world.later(WINDOW_S) if status == 429 else None
    steps = [training.forward_backward([datum()], "cross_entropy"), training.optim_step(types.AdamParams())]
    assert steps[1].result(timeout=20).metrics == {"steps": 1}
    assert edge.answered.count(429) >= 1
    (run,) = world.services.streams.list_runs(TENANT)
    assert [operation.state for operation in world.log(run)] == [OpState.COMPLETED] * 3


def test_hundreds_of_operations_at_once_arrive_though_few_of_their_polls_may_wait(
    world: World, edge: Edge, training: tinker.TrainingClient, trainer: Trainer
) -> None:
    """The SDK polls for each at the same time, and pauses for 1 s, 2 s and so on after a 429."""
    trainer.paused.set()
    steps = [training.optim_step(types.AdamParams()) for _ in range(200)]
    deadline = time.monotonic() + 20
    while edge.answered.count(429) < 200 - PLACES and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    assert edge.answered.count(429) <= 3 * 200  # at once, after 1 s, and of the first ones after 2 s more
    trainer.paused.clear()
    assert [step.result(timeout=40).metrics for step in steps] == [{"steps": 1}] * 200
    (run,) = world.services.streams.list_runs(TENANT)
    assert [operation.state for operation in world.log(run)] == [OpState.COMPLETED] * 201


def test_a_save_for_sampling_whose_answer_was_lost_is_found_again(
    world: World, edge: Edge, training: tinker.TrainingClient
) -> None:
    """The SDK gives each try a sampling session of its own."""
    edge.lost.append("save_weights_for_sampler")
    sampler = training.save_weights_and_get_sampling_client().result(timeout=20)
    assert edge.asked.count("save_weights_for_sampler") == 2
    assert str(sampler.get_base_model()) == BASE
    (run,) = world.services.streams.list_runs(TENANT)
    assert [operation.kind for operation in world.log(run)] == [OpKind.CREATE, OpKind.SAVE_SAMPLER]


def test_a_store_that_is_busy_is_asked_again_with_pauses(
    world: World, edge: Edge, training: tinker.TrainingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, busy_until = world.services.outcomes.result, time.monotonic() + 2

    def result(stream: StreamRecord, operation: Operation) -> Result:
        if time.monotonic() < busy_until:
            raise Unavailable("the store is busy")
        return read(stream, operation)

    monkeypatch.setattr(world.services.outcomes, "result", result)
    edge.asked.clear()
    assert training.optim_step(types.AdamParams()).result(timeout=20).metrics == {"steps": 1}
    assert edge.asked.count("retrieve_future") <= 4  # pauses of 1, 2 and 4 s


@pytest.mark.parametrize("error", [IntegrityError("altered"), RuntimeError("a mistake of ours")])
def test_a_result_that_cannot_be_read_fails_once(
    world: World,
    edge: Edge,
    training: tinker.TrainingClient,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def result(*_: object) -> Result:
        raise error

    monkeypatch.setattr(world.services.outcomes, "result", result)
    edge.asked.clear()
    with pytest.raises(tinker.RequestFailedError, match="the request id leads to the cause") as caught:
        training.optim_step(types.AdamParams()).result(timeout=20)
    assert caught.value.category is types.RequestErrorCategory.Server
    assert edge.asked.count("retrieve_future") <= 2  # one of them may have waited for the trainer


def test_a_project_is_what_its_runs_are_listed_by(
    training: tinker.TrainingClient,
    service: tinker.ServiceClient,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_PROJECT_ID", "project-b")
    other = tinker.ServiceClient(base_url="http://edge", api_key=key)
    inside = other.create_lora_training_client(BASE, rank=4).result(timeout=20)
    rest = tinker.RestClient(base_url="http://edge", api_key=key)

    def listed(**wanted: Any) -> set[str]:
        answer = rest.list_training_runs(**wanted).result(timeout=20)
        assert answer.cursor.total_count == len(answer.training_runs)
        return {run.training_run_id for run in answer.training_runs}

    both = {training.model_id, inside.model_id}
    assert listed() == both
    assert listed(project_id="project-b") == {inside.model_id}
    assert listed(project_id="project-c") == set()
    assert listed(access_scope="accessible") == both  # tenants share nothing
    assert rest.get_training_run(inside.model_id, access_scope="accessible").result(timeout=20)
    other.close("success").result(timeout=20)
