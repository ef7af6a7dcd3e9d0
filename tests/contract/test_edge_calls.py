"""What a request costs in calls of AWS, from header to answer: the rooms' own, and what the edge adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.auth.waits import SharedWaits
from tensafe.cloud.settings import WAITS_PER_TENANT
from tensafe.contracts.training import ModelInfo
from tensafe.lambdas.api import LIMITS
from tensafe.operations.records import StreamRecord
from tensafe.services import Services
from tensafe.storage.process_bell import ProcessBell
from tests.contract.emulators import Wire, moto_in_process
from tests.contract.test_rooms_on_aws import SUBMITTED, AwsWorld
from tests.unit.operations.world import BASE

MODEL = ModelInfo(name=BASE, path="/x", arch="LlamaForCausalLM", vocab_size=256, max_context_tokens=64)
DYNAMODB = ("BatchGetItem", "GetItem", "PutItem", "Query", "TransactGetItems", "TransactWriteItems")
SAMPLED = {"TransactWriteItems": 1, "SendMessage": 1}
COUNTERS = {"Query": 1, "TransactWriteItems": 2}
"""A share of a window and one of open operations, read together."""


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


@dataclass
class Edge:
    """One process of the API, what it is asked, and what each request costs."""

    world: AwsWorld
    wire: Wire
    key: str
    run: StreamRecord
    services: Services = field(init=False)
    http: TestClient = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Another process, which knows nothing."""
        self.services = self.world.open(keyring=self.world.services.ports.keyring, bell=ProcessBell())
        waits = SharedWaits(self.services.ports.items, WAITS_PER_TENANT)
        limits = replace(LIMITS, long_poll_s=0.04)  # a look, and no second one
        app = create_app(replace(self.services, models={BASE: MODEL}), limits, waits=waits)
        self.http = TestClient(app, headers={"X-API-Key": self.key})

    def cost(self, path: str, body: dict[str, Any]) -> dict[str, int]:
        self.wire.forget()
        answer = self.http.post(path, json=body)
        assert answer.status_code in (200, 202, 408), answer.text
        return dict(Counter(call.rpartition(".")[2] for call in self.wire.called))

    def optim_step(self, seq: int) -> dict[str, int]:
        step = {"model_id": self.run.stream_id, "seq_id": seq, "adam_params": {"learning_rate": 1e-3}}
        return self.cost("/api/v1/optim_step", step)

    def sample(self, seq: int) -> dict[str, int]:
        prompt = {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]}
        body = {"sampling_session_id": "s-1:sample:0", "seq_id": seq, "prompt": prompt, "sampling_params": {}}
        return self.cost("/api/v1/asample", body)

    def native_step(self, _: int) -> dict[str, int]:
        return self.cost(f"/v1/training_clients/{self.run.stream_id}/optim_step", {})

    def warm(self, act: Callable[[int], dict[str, int]]) -> list[dict[str, int]]:
        """What 24 requests cost in a process that has had one; the world's clock stands still meanwhile."""
        act(1)
        return [act(seq) for seq in range(2, 26)]


def edge_over(wire: Wire) -> Edge:
    """A tenant with a run and a sampling session, and a process that serves it."""
    world = AwsWorld()
    run = world.run()
    world.sampler()
    key, _ = world.services.api_keys.create("acme", ["train", "sample"])
    return Edge(world, wire, key, run)


@pytest.fixture
def edge(wire: Wire) -> Edge:
    return edge_over(wire)


def dynamodb(calls: dict[str, int]) -> int:
    return sum(calls.get(name, 0) for name in DYNAMODB)


@pytest.mark.parametrize(
    ("act", "least"),
    [(Edge.optim_step, SUBMITTED), (Edge.native_step, SUBMITTED), (Edge.sample, SAMPLED)],
    ids=["run", "native", "sample"],
)
def test_a_warm_request_costs_what_its_transaction_does(
    edge: Edge, act: Callable[[Edge, int], dict[str, int]], least: dict[str, int]
) -> None:
    """At most 2 of DynamoDB and 1 of SQS, with the credential, the stream and the limits."""
    costs = edge.warm(lambda seq: act(edge, seq))
    assert dynamodb(least) <= 2
    assert least.get("SendMessage") == 1
    # Once, the process's shares of the window and of the open operations are spent: it takes larger ones.
    (dear,) = [one for one in costs if one != least]
    assert dict(Counter(dear) - Counter(least)) == COUNTERS


def test_who_asks_seldom_pays_for_the_key_and_the_counters(edge: Edge) -> None:
    edge.warm(edge.optim_step)
    edge.world.later(0.6)
    assert edge.optim_step(50) == SUBMITTED | {"GetItem": SUBMITTED["GetItem"] + 1}
    edge.world.later(10)
    expected = Counter(SUBMITTED) + Counter(COUNTERS) + Counter({"GetItem": 1})
    assert edge.optim_step(51) == dict(expected)


def test_a_process_that_begins_reads_each_thing_once(edge: Edge) -> None:
    edge.optim_step(1)
    edge.start()
    first = edge.optim_step(2)
    # The key, the stream and its data key; the tenant's limits and counters with one query.
    assert first == dict(Counter(SUBMITTED) + Counter(COUNTERS) + Counter({"GetItem": 3, "Decrypt": 1}))
    assert dynamodb(first) == 8


def test_a_tenants_open_operations_are_counted_once_in_its_life(edge: Edge) -> None:
    """In 16 queries, one for each shard: an older store has operations and no counter."""
    assert edge.optim_step(1)["Query"] == 1 + 16
    edge.start()
    assert edge.optim_step(2)["Query"] == 1


def test_a_poll_that_waits_costs_its_place_and_one_that_does_not_costs_nothing_more(edge: Edge) -> None:
    """A read and a write when it begins, and when it ends: it looks some 45 times in 20 s besides."""
    edge.optim_step(1)
    poll = {"request_id": f"{edge.run.stream_id}:1"}
    looks = {"GetItem": 4}  # the stream, and the operation; before the wait and at its end
    waited = edge.cost("/api/v1/retrieve_future", poll)
    assert waited == {"GetItem": looks["GetItem"] + 2, "TransactWriteItems": 2}
    edge.world.complete(edge.run, edge.world.op(edge.run, 1))
    assert edge.cost("/api/v1/retrieve_future", poll)["GetItem"] <= 3
