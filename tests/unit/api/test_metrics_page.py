"""The page for Prometheus: real HTTP on loopback, over the rooms in memory."""

from __future__ import annotations

import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tensafe.api.app import create_app
from tensafe.api.metrics_page import serve_metrics
from tensafe.contracts.errors import ConfigurationError, Unavailable
from tensafe.metrics.counters import Counters
from tensafe.metrics.port import Metric, domain_label
from tensafe.services import Services
from tests.unit.operations.world import BASE, World

CLINIC = "clinic-7"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(port: int) -> Samples:
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics")
    assert answer.status_code == 200
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


@pytest.mark.sockets
def test_requests_work_and_workers_are_on_the_page(services: Services, world: World) -> None:
    meter, port = serve_metrics(services, 0)
    key, _ = services.api_keys.create(CLINIC, ["train"])
    run = world.run(tenant=CLINIC)
    world.submit(run, 1)
    counted = Counters()
    counted.add(Metric.OPERATIONS_ENDED, 3, kind="optim_step", outcome="completed")
    counted.set(Metric.BUDGET_USED, 0.75, domain=domain_label(CLINIC, "patients"))
    services.workers.announce("trainer", BASE, "trainer-1", 0, counted.series())
    with TestClient(create_app(services, meter=meter), headers={"X-API-Key": key}) as http:
        for path in (run.stream_id, "nothing"):
            http.get(f"/v1/training_clients/{path}")
        http.get("/no-such-route")
    page = scrape(port)
    route = "/v1/training_clients/{client_id}"
    assert of(page, "tensafe_requests_total", method="GET", route=route, status="200") == 1
    assert of(page, "tensafe_requests_total", method="GET", route=route, status="404") == 1
    assert of(page, "tensafe_requests_total", method="GET", route="unrouted", status="404") == 1
    assert of(page, "tensafe_request_seconds_count", method="GET", route=route) == 2
    assert of(page, "tensafe_oldest_operation_age_seconds") > 0
    assert of(page, "tensafe_workers", role="trainer", base_model=BASE) == 1
    mine = {"role": "trainer", "instance": "trainer-1"}
    ended = of(page, "tensafe_operations_ended_total", kind="optim_step", outcome="completed", **mine)
    assert ended == 3
    used = of(page, "tensafe_privacy_budget_used_ratio", domain=domain_label(CLINIC, "patients"), **mine)
    assert used == 0.75
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert not re.search(rf"patients|{run.stream_id}|{CLINIC}", text)


@pytest.mark.sockets
def test_a_store_that_does_not_answer_is_said_to_be_missing(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise Unavailable("secret words")

    _, port = serve_metrics(services, 0)
    assert of(scrape(port), "tensafe_scrape_failed", part="work") == 0
    monkeypatch.setattr(services.ports.queues, "depth", broken)
    page = scrape(port)
    assert of(page, "tensafe_scrape_failed", part="work") == 1
    assert of(page, "tensafe_scrape_failed", part="workers") == 0
    assert ("tensafe_dead_letters", ()) not in page


@pytest.mark.sockets
def test_a_taken_port_is_named(services: Services) -> None:
    _, port = serve_metrics(services, 0)
    with pytest.raises(ConfigurationError, match=str(port)):
        serve_metrics(services, port)
