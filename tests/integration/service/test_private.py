"""HE-01 over real HTTP: an adapter trained here, moved to an adapter holder, sampled under encryption."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from safetensors.numpy import load as load_safetensors
from tinker import types

from tensafe.api.metrics_page import NAMES
from tensafe.metrics.port import Metric
from tests.integration.service.test_canaries import Canaries
from tests.integration.service.test_sdk import train
from tests.support.alarms import alarm
from tests.support.attestations import check_verified_offline
from tests.support.drills import drill
from tests.support.holder_process import HolderProcess
from tests.support.runbooks import followed
from tests.support.service import MODEL_NAME, Service, tensafe

pytestmark = pytest.mark.one_machine("the adapter holder shares one machine; aws/test_private.py has AWS's")

GREEDY = types.SamplingParams(max_tokens=8, temperature=0.0)
PROMPT = types.ModelInput.from_ints([5, 9, 301, 77])


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[HolderProcess]:
    process = HolderProcess(tmp_path)
    yield process
    process.kill()


def sampled(client: tinker.SamplingClient) -> list[int]:
    return client.sample(PROMPT, num_samples=1, sampling_params=GREEDY).result().sequences[0].tokens


def refusals(service: Service) -> float:
    """What the page for Prometheus counts of the metric that the alarm watches, by its workers' last word."""
    name, _ = NAMES[Metric(alarm("he-unavailable").watched.metric)]
    lines = [line for line in service.metrics().splitlines() if line.startswith(f"{name}_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def refused_since(service: Service, before: float) -> float:
    """How many more there are, once the sampler has announced it."""
    deadline = time.monotonic() + 30
    while (found := refusals(service) - before) == 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


class HolderOperator:
    """Runs an adapter holder's own commands; `up` goes on for as long as the test."""

    def __init__(self, holder: HolderProcess) -> None:
        self._holder = holder

    def run(self, words: list[str]) -> Any:
        if words[3] == "up":
            return self._holder.start([sys.executable, *words[1:]])
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, check=True)
        return json.loads(done.stdout)


def exported(service: Service, path: str, folder: Path) -> dict[str, np.ndarray]:
    """The adapter's weights, before they leave the service."""
    archive = folder / "adapter.tar"
    tensafe("checkpoints", "export", path, str(archive), "--data-dir", str(service.data_dir))
    with tarfile.open(archive) as opened:
        (name,) = [one for one in opened.getnames() if one.endswith(".safetensors")]
        member = opened.extractfile(name)
        assert member is not None
        return load_safetensors(member.read())


def refused_without_it(service: Service, holder: HolderProcess, client: tinker.SamplingClient) -> None:
    holder.kill()
    counted = refusals(service)
    with pytest.raises(tinker.TinkerError, match="he_adapter_holder_absent"):
        sampled(client)
    assert alarm("he-unavailable").in_alarm([refused_since(service, counted)])


def sampled_once_it_is_there(client: tinker.SamplingClient) -> list[int]:
    """A refusal says `try again later`: a busy machine takes its time to start the adapter holder."""
    deadline = time.monotonic() + 90
    while True:
        try:
            return sampled(client)
        except tinker.TinkerError:
            if time.monotonic() > deadline:
                raise


def started_by_the_runbook(holder: HolderProcess) -> None:
    values = {"HOLDER_DIR": str(holder.data_dir), "HOLDER": holder.address}
    with followed("he-unavailable", HolderOperator(holder), local=True, **values) as book:
        (offered,) = book.run("python -m tensafe_gpu.adapter_holder list")["adapters"]
        book.given(ADAPTER=offered["name"])
        assert book.run("python -m tensafe_gpu.adapter_holder show")["status"] == "active"
        book.run("python -m tensafe_gpu.adapter_holder up")


def told_nothing(
    holder: HolderProcess, weights: dict[str, np.ndarray], key: str, completion: list[int]
) -> bool:
    """What the adapter holder writes has none of what it answered, and nothing of what it holds."""
    canaries = Canaries()
    canaries.tokens("a prompt", PROMPT.to_ints())
    canaries.tokens("a completion", completion)
    canaries.text("the API key", key[24:])
    for name, tensor in sorted(weights.items()):
        canaries.floats(f"weights {name}", tensor)
    assert len(canaries.patterns) > 20
    assert "key holder greeted" in holder.log.read_text()
    watched = list(holder.data_dir.glob("logs/*.log"))  # of what the runbook has started
    assert watched
    return canaries.found_in([holder.log, *watched]) == []


def operate(service: Service, *arguments: str) -> dict[str, Any]:
    done = tensafe("adapters", *arguments, "--data-dir", str(service.data_dir), "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_erased(service: Service, path: str, said: dict[str, Any]) -> None:
    """The checkpoint, and the run's snapshots with the key that they were sealed under."""
    run, here = path.removeprefix("tinker://").partition("/")[0], ("--data-dir", str(service.data_dir))
    assert said["other_copies"].startswith(f"none: run {run} is erased")
    assert tensafe("checkpoints", "show", path, *here, check=False).returncode == 3
    assert json.loads(tensafe("runs", "show", run, *here, "--json").stdout)["state"] == "erased"


@drill("he-unavailable")
def test_he_01_a_published_adapter_is_sampled_encrypted_or_not_at_all(
    service: Service, client: tinker.ServiceClient, key: str, holder: HolderProcess, tmp_path: Path
) -> None:
    training = client.create_lora_training_client(MODEL_NAME, rank=8, seed=3, train_unembed=False).result()
    train(training, 6)
    path = training.save_weights_for_sampler("mine").result().path
    plain = sampled(client.create_sampling_client(model_path=path).result())
    weights = exported(service, path, tmp_path)
    base_client = client.create_sampling_client(base_model=MODEL_NAME).result()
    base = sampled(base_client)
    assert plain != base

    wrong = f"{holder.address}-of-somebody"
    where = ("--holder-dir", str(holder.data_dir), "--holder", wrong)
    choices = ("--holder-tenant", "sampler", "--tokens-per-site", "500", "--private", "--yes")
    published = operate(service, "publish", path, *where, *choices)
    assert published["policy"] == "HE_REQUIRED"
    assert "inputs of the narrowest site" in published["extraction"]
    check_erased(service, path, published)
    with pytest.raises(tinker.TinkerError, match="he_adapter_holder_absent"):
        sampled(client.create_sampling_client(model_path=path).result())
    moved = operate(service, "move", path, "--holder", holder.address)
    assert (moved["holder"], moved["digest"]) == (holder.address, published["digest"])

    private_client = client.create_sampling_client(model_path=path).result()
    private = sampled(private_client)
    assert private != base
    headers = {"X-API-Key": key}

    def evidence(sampling: tinker.SamplingClient, seq: int) -> dict[str, Any]:
        future = f"{sampling._sampling_session_id}:{seq}"
        found = httpx.get(f"{service.url}/v1/futures/{future}/attestation", headers=headers)
        return found.raise_for_status().json()  # type: ignore[no-any-return]

    document = evidence(private_client, 0)["attestation"]
    statement = document["statement"]
    assert (statement["policy"], statement["mode"]) == ("HE_REQUIRED", "HE")
    assert statement["evaluated"] == statement["sites"] * statement["tokens"] > 0
    assert statement["tokens"] >= 4 + 8 - 1
    assert evidence(base_client, 0)["attestation"]["statement"]["mode"] == "NONE"

    check_verified_offline(service, document, tmp_path)

    refused_without_it(service, holder, private_client)
    result = f"{service.url}/v1/futures/{private_client._sampling_session_id}:1/result"
    answer = httpx.get(result, headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "he_adapter_holder_absent")
    assert sampled(base_client) == base
    started_by_the_runbook(holder)
    assert sampled_once_it_is_there(private_client) == private
    counted = refusals(service)
    assert sampled(private_client) == private
    assert not alarm("he-unavailable").in_alarm([refusals(service) - counted])

    assert told_nothing(holder, weights, key, private)

    operate(service, "revoke", path, "--holder-dir", str(holder.data_dir), "--yes")
    with pytest.raises(tinker.TinkerError):
        sampled(client.create_sampling_client(model_path=path).result())
