"""`/healthz` and `/readyz`: each dependency by its name, none of them able to hold up the answer."""

from __future__ import annotations

import threading
import time

import pytest
from starlette.testclient import TestClient

from tensafe.api.readiness import Readiness
from tensafe.contracts.errors import Unavailable
from tensafe.services import Services
from tensafe.storage.ports import StorageError
from tests.unit.operations.world import BASE, World

DEPENDENCIES = {
    "items": "get",
    "blobs": "head",
    "queues": "depth",
    "keys": "check",
    "signer": "check",
    "anchors": "get",
}


def port_of(services: Services, name: str) -> object:
    return getattr(services.ports, {"keys": "keyring"}.get(name, name))


def test_ready_once_every_dependency_answers_and_every_worker_is_there(
    http: TestClient, services: Services
) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    answer = http.get("/readyz", headers={"X-API-Key": ""})
    checks = answer.json()["checks"]
    assert answer.status_code == 503
    assert checks == {
        **dict.fromkeys(DEPENDENCIES, "ok"),
        f"trainer:{BASE}": "absent",
        f"sampler:{BASE}": "absent",
    }
    services.workers.announce("trainer", BASE, "trainer-1", 0)
    services.workers.announce("sampler", BASE, "sampler-1", 0)
    answer = http.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)


@pytest.mark.parametrize("name", DEPENDENCIES)
@pytest.mark.parametrize(
    ("error", "code"), [(Unavailable("x"), "unavailable"), (StorageError("x"), "storage_error")]
)
def test_what_fails_is_named_and_the_others_are_looked_at_all_the_same(
    services: Services, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, code: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(port_of(services, name), DEPENDENCIES[name], fail)
    checks = Readiness(services).checks()
    assert {one: checks[one] for one in DEPENDENCIES} == {**dict.fromkeys(DEPENDENCIES, "ok"), name: code}


@pytest.mark.parametrize("name", DEPENDENCIES)
def test_what_hangs_is_named_in_time_and_not_asked_again(
    services: Services, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    go_on, asked = threading.Event(), []

    def hang(*_: object, **__: object) -> None:
        asked.append(1)
        go_on.wait(20)

    readiness = Readiness(services, timeout_s=0.2)
    monkeypatch.setattr(port_of(services, name), DEPENDENCIES[name], hang)
    began = time.monotonic()
    for _ in range(3):
        assert readiness.checks()[name] == "timeout"
    assert time.monotonic() - began < 5
    assert len(asked) == 1
    go_on.set()


def test_asking_often_costs_little(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    readiness = Readiness(services, clock=lambda: now[0])
    readiness.checks()
    calls: list[int] = []
    monkeypatch.setattr(services.ports.keyring, "check", lambda *_: calls.append(1))
    monkeypatch.setattr(services.ports.signer, "check", lambda: calls.append(2))
    for _ in range(50):
        now[0] += 1
        readiness.checks()
    assert not calls
    now[0] += 15
    readiness.checks()
    assert sorted(calls) == [1, 2]


def test_nothing_of_any_tenant_is_told(http: TestClient, world: World) -> None:
    run = world.run(tenant="somebody")
    text = http.get("/readyz").text
    assert "somebody" not in text
    assert run.stream_id not in text
