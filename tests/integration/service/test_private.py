"""HE-01 over real HTTP: an adapter trained here, moved to an adapter holder, sampled under encryption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from tinker import types

from tests.integration.service.test_sdk import train
from tests.support.holder_process import HolderProcess
from tests.support.service import MODEL_NAME, Service, tensafe

GREEDY = types.SamplingParams(max_tokens=8, temperature=0.0)
PROMPT = types.ModelInput.from_ints([5, 9, 301, 77])


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[HolderProcess]:
    process = HolderProcess(tmp_path)
    yield process
    process.kill()


def sampled(client: tinker.SamplingClient) -> list[int]:
    return client.sample(PROMPT, num_samples=1, sampling_params=GREEDY).result().sequences[0].tokens


def operate(service: Service, *arguments: str) -> dict[str, Any]:
    done = tensafe("adapters", *arguments, "--data-dir", str(service.data_dir), "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_he_01_a_published_adapter_is_sampled_encrypted_or_not_at_all(
    service: Service, client: tinker.ServiceClient, key: str, holder: HolderProcess, tmp_path: Path
) -> None:
    training = client.create_lora_training_client(MODEL_NAME, rank=8, seed=3, train_unembed=False).result()
    train(training, 6)
    path = training.save_weights_for_sampler("mine").result().path
    plain = sampled(client.create_sampling_client(model_path=path).result())
    base_client = client.create_sampling_client(base_model=MODEL_NAME).result()
    base = sampled(base_client)
    assert plain != base

    where = ("--holder-dir", str(holder.data_dir), "--holder", holder.address)
    published = operate(service, "publish", path, *where, "--tokens-per-site", "500", "--private", "--yes")
    assert published["policy"] == "HE_REQUIRED"
    assert "inputs of the narrowest site" in published["extraction"]
    shown = tensafe("checkpoints", "show", path, "--data-dir", str(service.data_dir), check=False)
    assert shown.returncode == 3  # erased here

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

    file, public = tmp_path / "attestation.json", tmp_path / "key.pem"
    file.write_text(json.dumps(document))
    public.write_text(tensafe("privacy", "public-key", "--data-dir", str(service.data_dir)).stdout)
    verified = tensafe("verify", str(file), "--public-key", str(public), "--json")
    assert json.loads(verified.stdout)["mode"] == "HE"
    document["statement"]["mode"] = "PLAINTEXT"
    file.write_text(json.dumps(document))
    refused = tensafe("verify", str(file), "--public-key", str(public), check=False)
    assert (refused.returncode, "statement.mode" in refused.stderr) == (1, True)

    holder.kill()
    with pytest.raises(tinker.TinkerError, match="he_adapter_holder_absent"):
        sampled(private_client)
    result = f"{service.url}/v1/futures/{private_client._sampling_session_id}:1/result"
    answer = httpx.get(result, headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "he_adapter_holder_absent")
    assert sampled(base_client) == base
    holder.start()
    assert sampled(private_client) == private

    operate(service, "revoke", path, "--holder-dir", str(holder.data_dir), "--yes")
    with pytest.raises(tinker.TinkerError):
        sampled(client.create_sampling_client(model_path=path).result())
