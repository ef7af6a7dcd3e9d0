"""The seed's register of failures: what was reported there is tried here, and comes out the other way.

AUTH-01 is in test_auth.py, STORE-01 in test_native.py.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.native import Native, batch, make_key
from tests.support.service import MODEL_NAME, Service, free_port, tensafe


def create_by_hand(service: Service, key: str) -> dict[str, dict[str, str]]:
    """The register's reproduction: a curl that creates a training client."""
    body = f'{{"base_model": "{MODEL_NAME}", "lora": {{"rank": 4, "seed": 1}}}}'
    url = f"{service.url}/v1/training_clients"
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    if shutil.which("curl") is None:
        return dict(httpx.post(url, content=body, headers=headers).raise_for_status().json())
    flags = [argument for name, value in headers.items() for argument in ("-H", f"{name}: {value}")]
    done = subprocess.run(
        ["curl", "-sS", "--fail", "-X", "POST", url, *flags, "-d", body],
        capture_output=True,
        check=True,
        timeout=30,
    )
    return dict(httpx.Response(200, content=done.stdout).json())


@pytest.mark.one_machine("kills one machine's processes at once")
def test_state_01_nothing_is_lost_when_every_process_is_killed(own_service: Service) -> None:
    key = own_service.create_key("register")
    native = Native(own_service, key)
    first = create_by_hand(own_service, key)
    run = first["training_client"]["id"]
    loss = native.train(run)[0]
    done = native.submit(run, "forward_backward", batch(forward_only=True))
    before = native.result(done)
    second = create_by_hand(own_service, key)  # acknowledged, and perhaps not begun
    waiting = native.submit(run, "forward_backward", batch())
    own_service.kill_everything()
    own_service.start()
    assert native.get(f"/v1/training_clients/{run}").json()["id"] == run
    listed = native.get("/v1/training_clients").json()["training_clients"]
    assert {client["id"] for client in listed} == {run, second["training_client"]["id"]}
    assert native.result(done) == before
    native.result(second["future"]["id"])
    assert native.result(waiting)["metrics"]["loss:sum"] == before["metrics"]["loss:sum"] < loss


def test_queue_01_submitted_jobs_survive_a_killed_trainer(service: Service, tenant: str) -> None:
    native = Native(service, make_key(service, tenant))
    run = native.create()
    futures = []
    for _ in range(5):
        futures.append(native.submit(run, "forward_backward", batch()))
        futures.append(native.submit(run, "optim_step", {"learning_rate": 3e-3}))
    service.kill("trainer")
    futures.append(native.submit(run, "forward_backward", batch(forward_only=True)))
    results = [native.result(future) for future in futures]
    losses = [result["metrics"]["loss:sum"] for result in results[::2]]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 6  # every step was applied, and once
    undisturbed = native.create()
    assert native.train(undisturbed, 5) == losses[:5]


@pytest.mark.one_machine("is about one machine's key file; on AWS there is none")
def test_key_01_no_key_no_start(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir, port = tmp_path / "data", free_port()
    up = ("up", "--data-dir", str(data_dir), "--port", str(port), "--model", f"tiny={model_path}")
    never_made = tensafe(*up, check=False)
    assert never_made.returncode != 0
    assert "tensafe init" in never_made.stderr
    assert not data_dir.exists()
    tensafe("init", "--data-dir", str(data_dir))
    (data_dir / "key.json").rename(tmp_path / "elsewhere.json")
    lost = tensafe(*up, check=False)
    assert lost.returncode != 0
    assert "key.json" in lost.stderr
    assert not (data_dir / "key.json").exists()  # none was made in its place
    (tmp_path / "elsewhere.json").rename(data_dir / "key.json")
    monkeypatch.setenv("TENSAFE_ENVIRONMENT", "production")
    refused = tensafe(*up, check=False)
    assert refused.returncode != 0
    assert "TENSAFE_ACCEPT_LOCAL_KEY" in refused.stderr
