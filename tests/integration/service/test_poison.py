"""An operation whose trainer dies each time is set aside; one that dies with the whole service is not."""

from __future__ import annotations

import json
import time

import pytest

from tensafe.operations import layout
from tensafe.storage.sqlite_items import SqliteItems
from tests.support.native import Native, batch, example, make_key, problem
from tests.support.service import Service, tensafe

pytestmark = pytest.mark.one_machine("reads one machine's files; aws/test_drills.py has dead letters")

SLOW = batch(*[example([5 + (i * j) % 250 for j in range(1, 200)]) for i in range(1, 250)])
"""A forward_backward of a few seconds."""


def begun_by_another(service: Service, future: str, owners: set[str]) -> None:
    """Wait until a worker that is not among `owners` runs the operation, and add it."""
    stream_id, seq = future.rsplit(":", 1)
    items = SqliteItems(service.data_dir / "items.db")
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            item = items.get(layout.op_item(stream_id, int(seq)))
            assert item is not None
            owner, state = item.body["owner"], item.body["state"]
            if state == "running" and owner not in owners:
                owners.add(str(owner))
                return
            assert state in ("pending", "running"), state
            time.sleep(0.02)
    finally:
        items.close()
    raise TimeoutError


def test_an_operation_that_dies_with_its_trainer_three_times_is_set_aside(
    service: Service, tenant: str
) -> None:
    native = Native(service, make_key(service, tenant))
    run, other = native.create(), native.create()
    before = native.train(run)
    poison = native.submit(run, "forward_backward", SLOW)
    behind = native.submit(run, "optim_step", {"learning_rate": 1e-3})
    owners: set[str] = set()
    for _ in range(3):
        begun_by_another(service, poison, owners)
        service.kill("trainer")
    failed = native.wait(poison)
    assert failed.json()["error"]["code"] == "dead_letter"
    assert "3 tries of this forward_backward operation failed" in failed.json()["error"]["message"]
    assert native.wait(behind).json()["error"]["code"] == "run_blocked"
    began = time.monotonic()
    refused = native.post(f"/v1/training_clients/{run}/optim_step", {"learning_rate": 1e-3})
    assert time.monotonic() - began < 1
    assert problem(refused)[1] == "run_blocked"
    assert "dead-letters redrive" in refused.json()["error"]["message"]
    assert native.train(other) == before

    listed = tensafe(
        "dead-letters", "list", "--data-dir", str(service.data_dir), "--tenant", tenant, "--json"
    )
    (letter,) = json.loads(listed.stdout)
    assert (letter["run"], letter["kind"]) == (run, "forward_backward")
    tensafe("dead-letters", "redrive", letter["id"], "--data-dir", str(service.data_dir), "--json")
    assert native.result(poison)["metrics"]["loss:sum"] > 0
    assert len(native.train(run)) == 1


def test_an_operation_during_which_everything_is_killed_three_times_is_innocent(own_service: Service) -> None:
    native = Native(own_service, make_key(own_service, "unlucky"))
    run = native.create()
    loss = native.do(run, "forward_backward", SLOW)["metrics"]["loss:sum"]
    slow = native.submit(run, "forward_backward", SLOW)
    owners: set[str] = set()
    for _ in range(3):
        begun_by_another(own_service, slow, owners)
        own_service.kill_everything()
        own_service.launch()
    own_service.wait_ready()
    assert native.result(slow)["metrics"]["loss:sum"] == loss
    listed = tensafe("dead-letters", "list", "--data-dir", str(own_service.data_dir), "--json")
    assert json.loads(listed.stdout) == []
