"""Limits at the edge: which status, code and header each has, on every face."""

from __future__ import annotations

import httpx
import pytest
from starlette.testclient import TestClient

from tensafe.auth.windows import WINDOW_S
from tensafe.services import Services
from tests.unit.operations.world import BASE, TENANT, World


def create(http: TestClient, key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return http.post("/v1/training_clients", json={"base_model": BASE}, headers=headers)


def told(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    assert error["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, error["code"], answer.headers.get("retry-after")


def test_a_rate_is_429_until_the_window_ends(http: TestClient, services: Services, world: World) -> None:
    services.quotas.limits.change(TENANT, {"operations_per_s": 1})
    run = create(http).json()["training_client"]["id"]
    answers = [http.post(f"/v1/training_clients/{run}/optim_step", json={}) for _ in range(WINDOW_S)]
    assert {answer.status_code for answer in answers[:-1]} == {202}
    assert told(answers[-1]) == (429, "rate_limited", "10")
    assert http.get(f"/v1/training_clients/{run}").status_code == 200  # reads are not limited
    world.later(WINDOW_S)
    assert http.post(f"/v1/training_clients/{run}/optim_step", json={}).status_code == 202
    log = services.outcomes.operations(run, limit=100)
    assert [one.seq for one in log] == list(range(WINDOW_S + 1))


def test_the_number_of_runs_is_final_and_a_retry_is_no_second_run(
    http: TestClient, services: Services
) -> None:
    services.quotas.limits.change(TENANT, {"runs": 1})
    assert create(http, "first").status_code == 201
    assert told(create(http, "second")) == (429, "quota_exceeded", "60")
    assert create(http, "first").status_code == 201
    assert len(services.streams.list_runs(TENANT)) == 1


def test_on_the_tinker_face_a_quota_is_not_retried(http: TestClient, services: Services) -> None:
    services.quotas.limits.change(TENANT, {"sessions": 1})
    body = {"tags": [], "sdk_version": "0.38.0"}
    assert http.post("/api/v1/create_session", json=body).status_code == 200
    assert told(http.post("/api/v1/create_session", json=body)) == (422, "quota_exceeded", None)


def test_samples_and_completions_count_too(http: TestClient, services: Services, world: World) -> None:
    services.quotas.limits.change(TENANT, {"open_operations": 1})
    sampler = world.sampler()
    sample = {
        "sampling_session_id": sampler.stream_id,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
        "sampling_params": {"max_tokens": 2},
        "num_samples": 1,
    }
    assert http.post("/api/v1/asample", json={**sample, "seq_id": 1}).status_code == 200
    refused = http.post("/api/v1/asample", json={**sample, "seq_id": 2})
    assert told(refused) == (429, "too_many_open_operations", "2")
    completion = http.post("/v1/completions", json={"model": BASE, "prompt": [1, 2]})
    assert told(completion) == (429, "too_many_open_operations", "2")


def test_a_body_that_no_window_takes_is_refused_for_good(http: TestClient, services: Services) -> None:
    run = create(http).json()["training_client"]["id"]
    services.quotas.limits.change(TENANT, {"bytes_per_s": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services.quotas.limits, "_cache", {})
        save = {"name": "a-name-that-is-longer-than-ten-bytes"}
        answer = http.post(f"/v1/training_clients/{run}/save_state", json=save)
    assert told(answer)[:2] == (429, "quota_exceeded")
