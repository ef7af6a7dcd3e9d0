"""Waiting for results: held for the whole long poll, never a hot loop; large ones are announced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import psutil
import pytest
import tinker
import torch
from tinker import types

from tests.support.native import TOKENS, make_key, problem
from tests.support.sdk_data import supervised
from tests.support.service import MODEL_NAME, Service
from tests.support.tinker_http import TinkerHttp, training_message

LONG_POLL_S = 20.0
METADATA_FIRST_BYTES = 1024 * 1024


@contextmanager
def stopped(service: Service, role: str) -> Iterator[None]:
    """The role's process does nothing for a while, and does not die."""
    (pid,) = service.role_pids(role)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def timeouts(service: Service, since: int) -> int:
    """How many 408s the API has answered since its log had this size."""
    with (service.data_dir / "logs" / "api.log").open() as log:
        log.seek(since)
        lines = [json.loads(line) for line in log if line.startswith("{")]
    return sum(line.get("status") == 408 for line in lines)


@pytest.mark.one_machine("measures the API's process and reads its log file")
def test_nothing_is_answered_early_and_nobody_spins(
    service: Service, tenant: str, training_client: tinker.TrainingClient
) -> None:
    native = TinkerHttp(service, make_key(service, tenant))
    run = native.new_run(native.session())
    sampler = training_client.save_weights_and_get_sampling_client().result()
    assert sampler is not None
    native.data(training_message(run, 1)).raise_for_status()
    native.future(f"{run}:1").raise_for_status()
    session = run.split(":")[0]
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": MODEL_NAME}
    native.ok("create_sampling_session", body)
    log_size = (service.data_dir / "logs" / "api.log").stat().st_size
    (api,) = map(psutil.Process, service.role_pids("api"))

    def timed(path: str, ask: object) -> tuple[int, float, dict[str, object]]:
        began = time.monotonic()
        answer = native.http.get(path) if ask is None else native.post(path, ask)
        return answer.status_code, time.monotonic() - began, answer.json()

    with stopped(service, "trainer"), ThreadPoolExecutor(8) as pool:
        pending = training_client.forward_backward([supervised(TOKENS)], "cross_entropy")
        assert native.step(run, 2).status_code == 200
        spent = api.cpu_times()
        single = pool.submit(timed, "/api/v1/retrieve_future", {"request_id": f"{run}:2"})
        listing = pool.submit(
            timed,
            "/api/v1/retrieve_futures",
            {"target": {"sampling_session_id": f"{session}:sample:0"}, "timeout": 300},
        )
        brief = pool.submit(
            timed,
            "/api/v1/retrieve_futures",
            {"target": {"sampling_session_id": f"{session}:sample:0"}, "prev_cursor": 7, "timeout": 2},
        )
        result = pool.submit(timed, f"/v1/futures/{run}:2/result", None)
        assert (brief.result()[0], brief.result()[2]["cursor"]) == (200, 7)
        assert 1.9 < brief.result()[1] < 4
        for found, status in ((single, 408), (listing, 200), (result, 202)):
            assert found.result()[0] == status
            assert LONG_POLL_S - 0.1 < found.result()[1] < LONG_POLL_S + 5
        assert single.result()[2]["queue_state"] == "active"
        assert listing.result()[2]["completions"] == []
        time.sleep(1.0)
        used = api.cpu_times()
    assert timeouts(service, log_size) <= 2  # ours and at most one of the SDK's
    assert used.user + used.system - spent.user - spent.system < 1.5  # four waiters, two looks a second each
    assert pending.result(timeout=60).metrics["loss:sum"] > 0
    assert "metrics" in native.future(f"{run}:2").json()


@pytest.mark.one_machine("on AWS nothing wakes a waiter, it looks every 50 ms and then less often")
def test_a_waiter_is_woken_at_once(service: Service, tenant: str) -> None:
    """Submit to result of an operation that computes next to nothing, the median of 20."""
    native = TinkerHttp(service, make_key(service, tenant))
    run = native.create()
    took = []
    for _ in range(20):
        began = time.perf_counter()
        native.do(run, "optim_step")
        took.append(time.perf_counter() - began)
    assert sorted(took)[10] < 0.15  # 10 ms on an idle machine; polling once a second would take 0.5 s


def test_a_tenant_with_many_polls_keeps_nobody_waiting(service: Service, tenant: str) -> None:
    """A sampling session of which nothing is asked ends nothing: its polls last as long as they may."""
    crowd = TinkerHttp(service, make_key(service, f"{tenant}-crowd"))
    body = {"session_id": crowd.session(), "sampling_session_seq_id": 0, "base_model": MODEL_NAME}
    sampler = crowd.ok("create_sampling_session", body)["sampling_session_id"]
    poll = {"target": {"sampling_session_id": sampler}}
    other = TinkerHttp(service, make_key(service, tenant))
    run = other.new_run(other.session())
    other.trains(run, 1)  # whatever has to start for it has started
    places = service.waits_per_tenant
    asked = places + max(16, places // 20)

    async def all_at_once() -> list[httpx.Response]:
        options = {"base_url": service.url, "headers": dict(crowd.http.headers), "timeout": 90}
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), **options) as http:
            return await asyncio.gather(
                *(http.post("/api/v1/retrieve_futures", json=poll) for _ in range(asked))
            )

    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        polls = pool.submit(asyncio.run, all_at_once())
        time.sleep(3)
        other.trains(run, 3)
        assert time.monotonic() - began < LONG_POLL_S - 1, "it waited for the others' polls to end"
        answers = polls.result()
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {problem(answer)[:2] for answer in refused} == {(429, "too_many_requests")}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert places // 2 <= len(answers) - len(refused) <= places
    assert crowd.ok("retrieve_futures", {**poll, "timeout": 1})["completions"] == []  # there is room again


def test_a_result_of_over_a_megabyte_arrives_through_the_sdk(
    service: Service, key: str, training_client: tinker.TrainingClient
) -> None:
    length, rows = 510, 560
    tokens = torch.arange(5, 5 + length + 1) % 250 + 1
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={"target_tokens": tokens[1:]},
    )
    done = training_client.forward([datum] * rows, "cross_entropy").result(timeout=200)
    logprobs = np.stack([output["logprobs"].to_numpy() for output in done.loss_fn_outputs])
    assert logprobs.shape == (rows, length)
    assert logprobs.nbytes > METADATA_FIRST_BYTES
    assert np.ptp(logprobs, axis=0).max() <= 1e-4  # equal rows
    # The same over plain HTTP: announced once, if the client allows it, and sent when it does not.
    native = TinkerHttp(service, key)
    request = {"request_id": f"{training_client.get_info().model_id}:1"}
    announced = native.ok("retrieve_future", {**request, "allow_metadata_only": True})
    assert announced["status"] == "complete_metadata"
    sent = native.post("/api/v1/retrieve_future", {**request, "allow_metadata_only": False})
    assert sent.headers["content-type"] == "application/x-protobuf"
    assert len(sent.content) == announced["response_payload_size"]


def test_an_oversized_example_fails_and_the_next_operation_runs(
    training_client: tinker.TrainingClient,
) -> None:
    """The SDK sends one example whole, however large, and counts its seq_id."""
    with pytest.raises(tinker.RequestFailedError, match="payload_too_large"):
        training_client.forward_backward([supervised([7] * 1_500_000)], "cross_entropy").result(timeout=60)
    began = time.monotonic()
    assert training_client.forward_backward([supervised(TOKENS)], "cross_entropy").result(timeout=30)
    assert time.monotonic() - began < 10


def test_cancelling_a_sample_that_waits(service: Service, tenant: str) -> None:
    native = TinkerHttp(service, make_key(service, tenant))
    session = native.session()
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": MODEL_NAME}
    sampler = native.ok("create_sampling_session", body)["sampling_session_id"]
    prompt = {"chunks": [{"type": "encoded_text", "tokens": TOKENS}]}
    with stopped(service, "sampler"):
        asked = {
            "sampling_session_id": sampler,
            "seq_id": 1,
            "prompt": prompt,
            "sampling_params": {"max_tokens": 4},
        }
        request = {"request_id": native.ok("asample", asked)["request_id"]}
        assert native.ok("cancel_future", request)["cancelled"] is True
    told = native.future(request["request_id"]).json()
    assert (told["category"], "cancelled" in told["error"]) == ("user", True)
    listed = native.ok("retrieve_futures", {"target": {"sampling_session_id": sampler}})
    assert listed == {"completions": [{"state": "failed", **request}], "cursor": 1}
    asked["seq_id"] = 2
    assert native.future(native.ok("asample", asked)["request_id"]).status_code == 200
