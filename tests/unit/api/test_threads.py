"""What takes long leaves the event loop to others."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from starlette.testclient import TestClient

from tensafe.api import sampling
from tensafe.api.native import training_clients
from tensafe.api.tinker import sampling as tinker_sampling
from tests.unit.operations.world import World

PROMPT = [1, 2, 3]


@pytest.fixture
def seen(world: World, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the threads that parsed or checked a sampling request, or read runs of a list."""
    threads: set[str] = set()

    def watched(function: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            threads.add(threading.current_thread().name.rpartition("_")[0])
            return function(*arguments, **more)

        return call

    for where, name in (
        (training_clients, "parse"),
        (tinker_sampling, "parse"),
        (sampling, "check_sample"),
        (world.services.outcomes, "operations"),
        (world.services.checkpoints, "of_run"),
    ):
        monkeypatch.setattr(where, name, watched(getattr(where, name)))
    return threads


def test_a_sampling_request_is_read_in_a_thread(world: World, http: TestClient, seen: set[str]) -> None:
    sampler = world.sampler()
    body = {
        "sampling_session_id": sampler.stream_id,
        "seq_id": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]},
        "sampling_params": {"max_tokens": 4},
    }
    assert http.post("/api/v1/asample", json=body).status_code == 200
    run = world.run().stream_id
    assert http.post(f"/v1/training_clients/{run}/sample", json={"prompt": PROMPT}).status_code == 202
    assert seen == {"edge"}


def test_runs_are_listed_in_a_thread(world: World, http: TestClient, seen: set[str]) -> None:
    world.run()
    runs = http.get("/api/v1/training_runs").json()["training_runs"]
    assert [run["training_run_id"] for run in runs] == ["s-1:train:0"]
    assert seen == {"edge"}
