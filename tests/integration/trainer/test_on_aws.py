"""The trainer as ECS starts it: its own command and AWS's environment, over a moto that is a process.

A run with differential privacy, so that the ledger is signed in KMS and anchored in its table. SIGTERM, as
before Spot takes the machine: what was acknowledged is durable and the next task goes on.
"""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.api.context import EdgeLimits
from tensafe.operations.doorbell import train_queue
from tensafe.operations.records import OpState
from tensafe.operations.streams import now_ms
from tensafe.privacy.anchoring import Anchoring
from tensafe.privacy.export import Exporter
from tensafe.privacy.verify import verify
from tensafe.privacy.verify_replay import Report
from tensafe.services import Services
from tensafe.storage.signing import PublicKey
from tests.support import dealt_training, training_log
from tests.support.aws_stack import Stack, make_stack
from tests.support.moto_process import moto_process

pytestmark = pytest.mark.slow

BASE = "acme/tiny"
RUN = "s-1:train:0"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    path = training_log.smallest_model(tmp_path_factory.mktemp("models") / "tiny")
    model = {
        "name": BASE,
        "path": path,
        "arch": "LlamaForCausalLM",
        "vocab_size": training_log.VOCAB,
        "max_context_tokens": 64,
    }
    with moto_process() as endpoint:
        yield make_stack(endpoint, model)


@contextmanager
def trainer(stack: Stack, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    system = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**system, **stack.environment, "TENSAFE_DTYPE": "float32", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "tensafe_gpu.trainer", "--model", BASE]
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def finished(services: Services) -> list[int]:
    found = services.outcomes.operations(RUN, limit=1000)
    assert OpState.FAILED not in {one.state for one in found}, found
    return [one.seq for one in found if one.state is OpState.COMPLETED]


def test_a_private_run_outlives_the_task_that_trains_it(stack: Stack, tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    steps = 8
    with stack.services() as services:
        training_log.begin(services, RUN, BASE, optimizer=training_log.private(batch_size=3))
        with trainer(stack, log) as first:
            wait_until(lambda: finished(services) == [0], first, log)
            for step in range(steps):
                units = [3 * step, 3 * step + 1, 3 * step + 2]
                data = training_log.forward_backward(step, units=units)
                training_log.submit(services, RUN, 2 * step + 1, data)
                training_log.submit(services, RUN, 2 * step + 2, training_log.optim_step())
            wait_until(lambda: len(finished(services)) > 2, first, log)
            first.send_signal(signal.SIGTERM)
            assert first.wait(timeout=60) == 0, log.read_text()[-3000:]
        done = finished(services)
        assert services.workers.list() == []
        assert not services.leases.held(RUN, margin_s=0)
        if len(done) < 2 * steps + 1:  # what waits has a message of its own, which nobody has received
            queue = train_queue(BASE)
            (message,) = services.ports.queues.receive(queue, visibility_s=1, wait_s=1)
            assert (message.body, message.receives) == ({"stream": RUN}, 1)
            services.ports.queues.extend(queue, message.receipt, 0)
        with trainer(stack, log) as second:
            wait_until(lambda: len(finished(services)) == 2 * steps + 1, second, log)
            second.send_signal(signal.SIGTERM)
            assert second.wait(timeout=60) == 0
        # Metrics (EMF) lie between the log's lines and have no event.
        events = [json.loads(line).get("event") for line in log.read_text().splitlines() if line[:1] == "{"]
        # A first trainer that was quicker than its signal left nothing to take up.
        assert events.count("run restored") == (2 if len(done) < 2 * steps + 1 else 1)
        assert len(services.ports.anchors.all()) == 1
        report = verified(stack, services, "letters")
    assert report.rows == steps


def verified(stack: Stack, services: Services, domain: str) -> Report:
    """The domain's export, checked offline with nothing but the public key as KMS gives it out."""
    ports = services.ports
    exporter = Exporter(ports.items, services.vault, ports.signer, Anchoring(ports.items, ports.anchors))
    exported = b"".join(exporter.lines("acme", domain, at_ms=now_ms()))
    answer = stack.client("kms").get_public_key(KeyId=stack.environment["TENSAFE_SIGNING_KEY_ID"])
    pem = "-----BEGIN PUBLIC KEY-----\n%s-----END PUBLIC KEY-----\n"
    public = PublicKey.from_pem(pem % base64.encodebytes(answer["PublicKey"]).decode())
    report = verify(io.BytesIO(exported), {public.key_id: public}, processes=1)
    assert report.signed_by == (public.key_id,)
    return report


def test_a_dealt_run_is_registered_dealt_trained_and_exported(stack: Stack, tmp_path: Path) -> None:
    """Through the API over the same stores, with the trainer as a task of its own."""
    log, steps = tmp_path / "trainer.log", 3
    with stack.services() as services, trainer(stack, log) as process:
        dealt_training.register(services.domains)
        key = services.api_keys.create("acme", ["train"])[0]
        app = create_app(services, EdgeLimits(long_poll_s=0.2))
        with TestClient(app, headers={"X-API-Key": key}) as http:

            def result(future: str) -> dict[str, Any]:
                answers: list[Any] = []

                def ended() -> bool:
                    answers.append(http.get(f"/v1/futures/{future}/result"))
                    return bool(answers[-1].status_code != 202)

                wait_until(ended, process, log)
                assert answers[-1].status_code == 200, answers[-1].text
                return dict(answers[-1].json())

            optimizer = dealt_training.dealt(max_steps=steps, sampling_probability=0.25)
            body = {"base_model": BASE, "lora": {"rank": 2, "seed": 7}}
            asked = {**body, "optimizer": optimizer.model_dump(mode="json", exclude_none=True)}
            made = http.post("/v1/training_clients", json=asked)
            assert made.status_code == 201, made.text
            result(made.json()["future"]["id"])
            path = f"/v1/training_clients/{made.json()['training_client']['id']}"
            stated = set()
            for step in range(steps):
                dealt = http.post(f"{path}/deals", json={"step": step}).json()
                if dealt["unit_ids"]:
                    data = dealt_training.body(dealt["unit_ids"])
                    result(http.post(f"{path}/forward_backward", json=data).json()["id"])
                stepped = result(http.post(f"{path}/optim_step", json={"learning_rate": 1e-2}).json()["id"])
                assert stepped["metrics"]["dp/deal"] == step
                stated |= {dealt["epsilon"], stepped["metrics"]["dp/epsilon"]}
            refused = http.post(f"{path}/deals", json={"step": steps})
            assert refused.json()["error"]["code"] == "privacy_budget_exceeded"
        report = verified(stack, services, dealt_training.DOMAIN)
    (run,) = report.runs
    assert (report.rows, run.steps, run.abandoned) == (1 + steps, steps, 0)
    assert report.registered is not None
    assert len(stated) == 1
    assert report.epsilon == pytest.approx(stated.pop(), rel=2e-3)
