"""Deals are gone through in order, taken up where they stand, and never given up unasked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tensafe.client.deals import Deals, DealtBatches
from tensafe.client.parts import PartLimits
from tensafe.client.service import Service, ServiceError
from tensafe.contracts.errors import Conflict, InvalidRequest
from tensafe.privacy import deal_record
from tensafe.privacy.deal_record import DealRecord

pytestmark = pytest.mark.sockets

DRAWN = [[3, 5], [], [4], [3, 4, 5]]
DATA = {unit: [{"tokens": [unit], "loss_fn_inputs": {}}] * (unit - 2) for unit in (3, 4, 5)}


class Edge:
    """The three routes of deals over real HTTP, by the service's own rules; `answers` come first."""

    def __init__(self) -> None:
        self.record = DealRecord(max_steps=len(DRAWN))
        self.answers: list[tuple[int, str]] = []
        self.seen: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.seen.append(f"{method} {path.removeprefix('/v1/training_clients/run%2F1')}")
        if self.answers:
            status, code = self.answers.pop(0)
            error = {"code": code, "message": "no", "field": None, "request_id": "r"}
            return status, {"error": error, "detail": "no"}
        if method == "GET":
            return 200, self.told()
        if path.endswith("/abandon"):
            self.record = deal_record.abandon(self.record, int(path.split("/")[-2]))
            return 200, self.told()
        step = json.loads(body)["step"]
        self.record = deal_record.dealt(self.record, step)
        told = {"epsilon": 2.5, "delta": 1e-5, "row_hash": f"row-{step}", "deals": self.told()}
        return 200, {"step": step, "unit_ids": DRAWN[step], **told}

    def told(self) -> dict[str, Any]:
        record = self.record
        left = record.dealt if record.dealt < record.max_steps else None
        counts = {"dealt": record.dealt, "completed": record.completed, "abandoned": record.abandoned}
        return {"max_steps": record.max_steps, **counts, "open_step": record.open_step, "next_step": left}

    def step(self) -> None:
        assert self.record.open_step is not None
        self.record = deal_record.complete(self.record, self.record.open_step)


@pytest.fixture
def edge() -> Edge:
    return Edge()


@pytest.fixture
def url(edge: Edge) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, told = edge.answer(self.command, self.path, body)
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def service(url: str) -> Service:
    return Service(url, "tml-x", pause=lambda _: None)


def batches(service: Service, **options: Any) -> DealtBatches[dict[str, Any]]:
    return DealtBatches(service, "run/1", DATA, **{"pause": lambda _: None, **options})


def test_every_deal_is_gone_through_once_and_an_empty_one_has_no_parts(service: Service, edge: Edge) -> None:
    seen = []
    for deal in batches(service, limits=PartLimits(data=3)):
        seen.append((deal.step, list(deal.unit_ids), [len(part) for part in deal.parts]))
        assert (deal.epsilon, deal.delta, deal.row_hash) == (2.5, 1e-5, f"row-{deal.step}")
        assert not deal.resumed
        assert "unit_ids" not in repr(deal), "a log of deals undoes the amplification"
        assert "tokens" not in repr(deal)
        edge.step()
    assert seen == [(0, [3, 5], [1, 3]), (1, [], []), (2, [4], [2]), (3, [3, 4, 5], [3, 3])]
    assert edge.record == DealRecord(4, dealt=4, abandoned=0, last="complete")
    assert list(batches(service)) == [], "nothing is left"


def test_a_loop_that_does_not_wait_for_its_futures_is_waited_for(service: Service, edge: Edge) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            edge.step()

    deals = iter(batches(service, pause=pause))
    assert next(deals).step == 0
    assert next(deals).step == 1
    assert pauses == [0.02, 0.04, 0.08]
    assert edge.seen == ["GET /deals", "POST /deals", *["GET /deals"] * 4, "POST /deals"]


def test_a_step_that_is_never_taken_ends_the_loop_and_abandons_nothing(service: Service, edge: Edge) -> None:
    pauses: list[float] = []
    deals = iter(batches(service, patience_s=5.0, pause=pauses.append))
    next(deals)
    with pytest.raises(
        Conflict, match=r"after 5 s the deal of step 0 is open still: its optim_step"
    ) as caught:
        next(deals)
    assert caught.value.code == "deal_not_taken"
    assert 5.0 <= sum(pauses) < 6.0
    assert edge.record == DealRecord(4, dealt=1, abandoned=0, last="open")


def test_after_a_crash_the_open_deal_comes_again_first(service: Service, edge: Edge) -> None:
    before = iter(batches(service))
    next(before)
    edge.step()
    next(before)
    edge.step()
    lost = next(before)
    after = iter(batches(service))
    again = next(after)
    assert (again.step, again.unit_ids, again.resumed) == (2, lost.unit_ids, True)
    edge.step()
    assert [(deal.step, deal.resumed, edge.step()) for deal in after] == [(3, False, None)]
    assert edge.record.abandoned == 0


def test_a_deal_is_given_up_when_that_is_asked_for(service: Service, edge: Edge) -> None:
    next(iter(batches(service)))
    deals = batches(service, abandon_open=True)
    assert next(iter(deals)).step == 1
    assert deals.show() == Deals(4, dealt=2, completed=0, abandoned=1, open_step=1, next_step=2)
    assert deals.abandon(1).abandoned == 2
    assert edge.record.dealt == 2


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_busy_service_is_asked_again(service: Service, edge: Edge, status: int) -> None:
    edge.answers = [(status, "unavailable")] * 3
    deals = iter(batches(service))
    assert next(deals).step == 0
    edge.step()
    edge.answers = [(status, "unavailable")] * 5
    assert next(deals).step == 1
    assert edge.record.dealt == 2, "no deal was skipped"


def test_a_run_that_is_being_created_is_waited_for_and_refusals_are_told(
    service: Service, edge: Edge
) -> None:
    edge.answers = [(409, "operations_under_way")] * 2
    deals = iter(batches(service))
    assert next(deals).step == 0
    edge.answers = [(409, "operations_under_way")] * 99
    with pytest.raises(Conflict, match="after 1 s the run has not been created"):
        next(iter(batches(service, patience_s=1.0)))
    edge.answers = [(409, "not_a_dealt_run")]
    with pytest.raises(ServiceError) as caught:
        next(iter(batches(service)))
    assert caught.value.code == "not_a_dealt_run"


def test_data_that_cannot_be_sent_whole_are_refused_before_anything_is_dealt(
    service: Service, edge: Edge
) -> None:
    with pytest.raises(InvalidRequest, match="unit 5 has 3 data"):
        batches(service, limits=PartLimits(data=2))
    assert edge.seen == []


def test_a_dealt_unit_without_data_is_told_and_the_deal_stays_open(service: Service, edge: Edge) -> None:
    some = DealtBatches(service, "run/1", {3: DATA[3]}, pause=lambda _: None)
    with pytest.raises(InvalidRequest, match=r"unit 5 of the deal of step 0 .* \(1 of its 2 units are not\)"):
        next(iter(some))
    assert edge.record.open_step == 0
    assert next(iter(batches(service))).unit_ids == (3, 5)
