"""Nothing that is planted stands in any log or metric of a deployment, of its functions and of its tasks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from uuid import uuid4

import httpx
import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors

from tests.integration.aws.test_workers import wait_until
from tests.integration.service.test_canaries import PRIVATE, STOP_STRING, UNIT_ID, Canaries
from tests.support.aws_service import AwsService
from tests.support.drills import AWAY, deployed_with, in_flight, physical_id, visible
from tests.support.native import Native, batch, example

FUNCTIONS = ("api", "authorizer", "sweeper", "dead-letters")


def trained_and_sampled(native: Native, canaries: Canaries) -> str:
    """A run and a private one on what is planted; the first one's id."""
    rng = np.random.default_rng(11)
    secret, prompt = rng.integers(1, 250, 24).tolist(), rng.integers(1, 250, 24).tolist()
    run, private = native.create(), native.create(optimizer={**PRIVATE, "max_epsilon": 50.0})
    for client, more in ((run, {}), (private, {"dp_unit_id": UNIT_ID})):
        native.do(client, "forward_backward", batch({**example(secret), **more}))
        native.do(client, "optim_step", {"learning_rate": 1e-2})
    # Several: one may end at its first token.
    asked = {"prompt": prompt, "num_samples": 4, "sampling_params": {"max_tokens": 24, "stop": [STOP_STRING]}}
    completion = max(native.do(run, "sample", asked)["sequences"], key=lambda one: len(one["tokens"]))
    canaries.tokens("a training example", secret)
    canaries.tokens("a target", secret[1:13])
    canaries.number("a unit id", UNIT_ID)
    canaries.tokens("a prompt", prompt)
    canaries.text("a stop string", STOP_STRING)
    canaries.tokens("a completion", completion["tokens"][:16])
    canaries.floats("logprobs of a completion", np.array(completion["logprobs"]))
    state = load_safetensors(native.content(native.save(run, "state")["id"]))
    for name, tensor in sorted(state.items())[:4]:
        if tensor.dtype == np.float32 and np.count_nonzero(tensor) > 64:
            canaries.floats(f"weights {name}, and so a gradient", tensor)
    return run


def refused(service: AwsService, native: Native, run: str, canaries: Canaries) -> None:
    """Requests and messages whose refusal might quote what they hold, at every function."""
    forged = f"tml-{uuid4().hex}{uuid4().hex}"
    canaries.text("a forged key", forged)
    native.post(f"/v1/training_clients/{run}/forward_backward", batch(example([1, 10**6, 2])))
    native.post(f"/v1/training_clients/{run}/nothing-like-this-{STOP_STRING}")
    native.post("/v1/training_clients", {"base_model": STOP_STRING})
    native.http.post("/v1/training_clients", content=f'{{"{STOP_STRING}"')
    httpx.get(f"{service.url}/v1/models", headers={"X-API-Key": forged}, timeout=60)
    httpx.get(f"{service.url}/v1/models", headers={"Authorization": f"Bearer {forged}.x.y"}, timeout=60)
    sqs, queue = service.stack.emulator.client("sqs"), physical_id(service, "SampleDeadQueue")
    for body in (STOP_STRING, json.dumps({"stream": f"s-{STOP_STRING}", "seq": 0})):
        sqs.send_message(QueueUrl=queue, MessageBody=body)
    wait_until(lambda: visible(service, "SampleDeadQueue") + in_flight(service, "SampleDeadQueue") == 0, 60)
    with deployed_with(service, "AuthorizerFunction", **AWAY):
        assert native.get("/v1/models").status_code == 500
    with deployed_with(service, "SweeperFunction", **AWAY), pytest.raises(RuntimeError, match="not done"):
        service.stack.invoke("SweeperFunction")


def written(service: AwsService, folder: Path, since_ms: int) -> dict[str, Path]:
    """All that CloudWatch has been told, by log group, and the metrics; and what the tasks have written."""
    logs, found = service.stack.emulator.client("logs"), dict[str, Path]()
    for page in logs.get_paginator("describe_log_groups").paginate():
        for group in page["logGroups"]:
            events = logs.get_paginator("filter_log_events").paginate(
                logGroupName=group["logGroupName"], startTime=since_ms
            )
            path = folder / f"{group['logGroupName'].replace('/', '_')}.log"
            path.write_text("\n".join(one["message"] for part in events for one in part["events"]))
            found[group["logGroupName"].rpartition("/")[2]] = path
    metrics = folder / "metrics.json"
    metrics.write_text(json.dumps(service.stack.emulator.client("cloudwatch").list_metrics()["Metrics"]))
    tasks = {role: service.stack.tasks.log(role) for role in ("trainer", "sampler")}
    return {**found, **tasks, "metrics": metrics}


def test_no_log_and_no_metric_holds_what_was_worked_on(service: AwsService, key: str, tmp_path: Path) -> None:
    since_ms, native, canaries = int(time.time() * 1000), Native(service, key), Canaries()
    run = trained_and_sampled(native, canaries)
    refused(service, native, run, canaries)
    canaries.text("the API key", key[24:])
    assert len(canaries.patterns) > 30
    found = written(service, tmp_path, since_ms)
    # Each of them has something of this very work in it: its lines, or the metrics' names.
    texts = {name: path.read_text() for name, path in found.items()}
    for name in FUNCTIONS:
        assert texts[name].strip(), name
    assert '"event":"maintenance failed"' in texts["sweeper"]
    assert '"event":"a message that is not ours"' in texts["dead-letters"]
    assert "does not answer" in texts["authorizer"]
    assert "PrivacyBudgetUsedRatio" in texts["trainer"]
    assert "OperationsEnded" in texts["sampler"]
    control = Canaries()
    control.text("the run", run)
    assert control.found_in(found.values())
    assert canaries.found_in(found.values()) == []
