"""What a request costs in calls of AWS, from header to answer: the rooms' own, and what the edge adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.contracts.training import ModelInfo
from tensafe.lambdas.api import LIMITS
from tests.contract.emulators import Wire, moto_in_process
from tests.contract.test_rooms_on_aws import SUBMITTED, AwsWorld
from tests.unit.operations.world import BASE

MODEL = ModelInfo(name=BASE, path="/x", arch="LlamaForCausalLM", vocab_size=256, max_context_tokens=64)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with moto_in_process(), Wire().between() as wire:
        yield wire


def test_a_warm_process_reads_the_stream_more_and_now_and_then_the_tenants_counters(wire: Wire) -> None:
    world = AwsWorld()
    run = world.run()
    key, _ = world.services.api_keys.create("acme", ["train"])
    http = TestClient(create_app(replace(world.services, models={BASE: MODEL}), LIMITS))
    counted: list[dict[str, int]] = []
    for seq in range(1, 34):
        wire.forget()
        body = {"model_id": run.stream_id, "seq_id": seq, "adam_params": {"learning_rate": 1e-3}}
        answer = http.post("/api/v1/optim_step", json=body, headers={"X-API-Key": key})
        assert answer.status_code == 200, answer.text
        counted.append(Counter(call.rpartition(".")[2] for call in wire.called))
    least = SUBMITTED | {"GetItem": SUBMITTED["GetItem"] + 1}
    first, *others = counted
    assert first["Query"] == 16  # how many operations the tenant has open, which a process asks once
    # The key and a share of a window are read anew after a while, and a share of open operations is twice
    # the last one: the calls of these few requests are not told apart here.
    assert sum(one == least for one in others) >= len(others) * 2 // 3
    assert all(one["SendMessage"] == 1 for one in counted)
