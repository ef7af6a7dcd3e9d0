"""Creating runs, by either face."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from tensafe.api import runs
from tests.unit.operations.world import BASE, World

KEYED = {"Idempotency-Key": "create"}
NATIVE = {"base_model": BASE}
TINKER = {"model_seq_id": 0, "base_model": BASE, "lora_config": {"rank": 4}}


@pytest.fixture
def session(http: TestClient) -> str:
    made = http.post("/api/v1/create_session", json={"tags": [], "sdk_version": "0.38.0"})
    return str(made.json()["session_id"])


@pytest.mark.parametrize("face", ["native", "tinker"])
def test_two_creations_of_one_run_at_once_agree_on_its_seed(
    world: World, http: TestClient, session: str, monkeypatch: pytest.MonkeyPatch, face: str
) -> None:
    create, both = runs.create_run, threading.Barrier(2)

    def at_once(*arguments: Any, **more: Any) -> Any:
        both.wait(5)
        return create(*arguments, **more)

    monkeypatch.setattr(runs, "create_run", at_once)

    def ask(_: int) -> Any:
        if face == "native":
            return http.post("/v1/training_clients", json=NATIVE, headers=KEYED)
        return http.post("/api/v1/create_model", json={**TINKER, "session_id": session})

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, range(2))
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert first.status_code in (200, 201)
    (run,) = world.services.streams.list_runs("acme")
    assert len(world.log(run)) == 1


def test_runs_without_a_seed_have_seeds_of_their_own(http: TestClient) -> None:
    made = [http.post("/v1/training_clients", json=NATIVE).json()["training_client"] for _ in range(3)]
    seeds = {client["lora"]["seed"] for client in made}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_adapter_with_nothing_to_train_is_refused_by_name(http: TestClient, session: str) -> None:
    nothing = {"train_attn": False, "train_mlp": False, "train_unembed": False}
    native = http.post("/v1/training_clients", json={**NATIVE, "lora": nothing})
    config = {"rank": 4, **nothing}
    tinker = http.post("/api/v1/create_model", json={**TINKER, "session_id": session, "lora_config": config})
    for answer, field in ((native, "lora"), (tinker, "lora_config")):
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
        assert "train_unembed" in answer.json()["detail"]


def test_an_access_scope_that_nobody_has_is_refused(http: TestClient) -> None:
    for path in ("training_runs", "training_runs/s-1:train:0", "sessions", "sessions/s-1"):
        answer = http.get(f"/api/v1/{path}?access_scope=everybody")
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "access_scope")
