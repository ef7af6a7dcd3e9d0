"""HE-01 on the deployment: trained there, moved to an adapter holder's own stores, sampled under encryption.

The adapter holder is the template's command with the template's variables. ministack's KMS wraps keys with
an XOR and checks no policies, so what the key ring protects is shown over moto (`tests/integration/
adapter_holder/test_on_aws.py`); its P-256 key signs as AWS's does, and the attestation is verified with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from tinker import types

from tests.integration.service.test_sdk import train
from tests.support.aws_service import AwsService
from tests.support.certificates import Authority
from tests.support.service import MODEL_NAME, free_port, tensafe
from tools.aws_local.tasks import TaskSpec, on_this_machine, read_tasks, running_tasks

GREEDY = types.SamplingParams(max_tokens=8, temperature=0.0)
PROMPT = types.ModelInput.from_ints([5, 9, 301, 77])


@pytest.fixture
def holder(service: AwsService, tmp_path: Path) -> Iterator[TaskSpec]:
    """The adapter holder's task, with certificates for both sides; it listens on loopback alone."""
    authority, stack = Authority(tmp_path), service.stack
    theirs, ours = authority.issue("holder"), authority.issue("sampler")
    resources, given = stack.deployment.resources(), {"AdapterHolderImage": "image"}
    (spec,) = read_tasks(given, resources, ("adapter-holder",))
    spec = on_this_machine(spec, stack.emulator, tmp_path)
    files = ("--tls-cert", theirs.certificate, "--tls-key", theirs.key, "--tls-ca", theirs.authority)
    seal = [*spec.command[:-2], "tls", *files]
    subprocess.run(seal, env=dict(spec.environment), check=True, capture_output=True)
    service.tensafe(
        *("adapters", "certificate", "--cert", str(ours.certificate), "--key", str(ours.key)),
        *("--ca", str(ours.authority)),
    )
    spec = replace(spec, command=(*spec.command[:-1], f"tcp:127.0.0.1:{free_port()}"))
    with running_tasks([spec], tmp_path):
        yield spec


def adapters(service: AwsService, holder: TaskSpec, *arguments: str) -> dict[str, Any]:
    """`tensafe adapters`, told of both sides' stores; the adapter holder's with credentials of their own."""
    stores = {
        f"TENSAFE_HOLDER_{name}": holder.environment[f"TENSAFE_{name}"]
        for name in ("TABLE", "BUCKET", "KMS_KEY_ID")
    }
    config = Path(holder.environment["HOME"]) / "aws-config"
    config.write_text("[profile adapters]\naws_access_key_id = holder\naws_secret_access_key = holder\n")
    stores |= {"TENSAFE_HOLDER_PROFILE": "adapters", "AWS_CONFIG_FILE": str(config)}
    line = [
        sys.executable,
        "-P",
        "-c",
        "from tensafe.cli import main; main()",
        "adapters",
        *arguments,
        "--json",
    ]
    environment = {"PATH": os.environ["PATH"], **service.stack.environment(), **stores}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def sampled(client: tinker.SamplingClient) -> list[int]:
    return client.sample(PROMPT, num_samples=1, sampling_params=GREEDY).result().sequences[0].tokens


def test_he_01_a_published_adapter_is_sampled_encrypted_on_the_deployment(
    service: AwsService, client: tinker.ServiceClient, key: str, holder: TaskSpec, tmp_path: Path
) -> None:
    training = client.create_lora_training_client(MODEL_NAME, rank=8, seed=3, train_unembed=False).result()
    train(training, 6)
    path = training.save_weights_for_sampler("mine").result().path
    base = sampled(client.create_sampling_client(base_model=MODEL_NAME).result())
    plain = sampled(client.create_sampling_client(model_path=path).result())
    published = adapters(
        service,
        holder,
        *(
            "publish",
            path,
            "--private",
            "--yes",
            "--holder",
            holder.command[-1],
            "--holder-tenant",
            "sampler",
            "--tokens-per-site",
            "500",
        ),
    )
    assert published["policy"] == "HE_REQUIRED"
    private_client = client.create_sampling_client(model_path=path).result()
    private = sampled(private_client)
    assert private != base
    assert plain != base

    future = f"{private_client._sampling_session_id}:0"
    answer = httpx.get(f"{service.url}/v1/futures/{future}/attestation", headers={"X-API-Key": key})
    document = answer.raise_for_status().json()["attestation"]
    file, public = tmp_path / "attestation.json", tmp_path / "key.pem"
    file.write_text(json.dumps(document))
    public.write_text(service.tensafe("privacy", "public-key").stdout)
    statement = json.loads(tensafe("verify", str(file), "--public-key", str(public), "--json").stdout)
    assert (statement["policy"], statement["mode"]) == ("HE_REQUIRED", "HE")
    assert statement["evaluated"] == statement["sites"] * statement["tokens"] > 0
    adapters(service, holder, "revoke", path, "--yes")
    with pytest.raises(tinker.TinkerError):
        sampled(client.create_sampling_client(model_path=path).result())
