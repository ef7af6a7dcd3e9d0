"""The arithmetic of infra/cost.md, on counts that a reader can follow."""

from __future__ import annotations

import tomllib

import pytest

from tensafe.metrics.port import Metric
from tests.project_files import ROOT
from tests.support.templates import CORE, OBSERVABILITY, read_template
from tools.cost import (
    PAGE,
    Calls,
    calls_of,
    page,
    per_idle_month,
    per_thousand_operations,
    per_waiting_hour,
    resources_of_the_core,
    written,
)

GIVEN = tomllib.loads((ROOT / "tools/prices.toml").read_text())
CALLS = {
    "credential": Calls({"GetItem": 1}, read_units=1),
    "submit": Calls({"TransactWriteItems": 1, "SendMessage": 1}, write_units=6, read_units=2),
    "finish": Calls({"TransactWriteItems": 1}, write_units=4, read_units=0),
    "look": Calls({"BatchGetItem": 1}, read_units=2),
    "heartbeat": Calls({"GetItem": 1, "TransactWriteItems": 1}, write_units=4, read_units=1),
    "wait": Calls({"GetItem": 2, "TransactWriteItems": 2}, write_units=4, read_units=2),
    "sweep": Calls({"Query": 32}, write_units=0, read_units=32),
}


def test_a_transaction_is_paid_for_twice_and_by_the_kilobyte() -> None:
    small, large = {"Put": {"Item": {}}}, {"Put": {"Item": "x" * 1500}}
    called = ["DynamoDB.TransactWriteItems", "DynamoDB.GetItem", "DynamoDB.PutItem", "AmazonSQS.SendMessage"]
    calls = calls_of(called, [{"TransactItems": [small, large]}, {}, {"Item": "x" * 2000}, {}])
    assert (calls.write_units, calls.read_units) == (2 * 1 + 2 * 2 + 2, 1)
    assert calls.count("SendMessage") == 1


def test_of_a_read_of_many_each_item_is_paid_for() -> None:
    asked = {"RequestItems": {"items": {"Keys": [{}, {}, {}]}}}
    assert calls_of(["DynamoDB.BatchGetItem"], [asked]).read_units == 3


def test_a_waiting_hour_pays_for_looks_and_heartbeats() -> None:
    rows = per_waiting_hour(CALLS, GIVEN)
    assert rows["SQS, 3600 looks at the queue"] == pytest.approx(3600 * 0.5e-6)
    assert rows["SQS, 450 extensions of a message"] == pytest.approx(450 * 0.5e-6)
    assert rows["DynamoDB, 7650 read units"] == pytest.approx((3600 * 2 + 450) * 0.125e-6)
    assert rows["DynamoDB, 1800 write units"] == pytest.approx(450 * 4 * 0.625e-6)


def test_a_thousand_operations_cost_what_their_calls_do() -> None:
    rows = per_thousand_operations(CALLS, GIVEN)
    assert rows["DynamoDB, 14 write units"] == pytest.approx(1000 * 14 * 0.625e-6)
    assert rows["DynamoDB, 16 read units"] == pytest.approx(1000 * 16 * 0.125e-6)
    assert rows["SQS, 3 requests"] == pytest.approx(1000 * 3 * 0.5e-6)
    gb_s = 1.0 * 2.03 + 2 * 0.5 * 0.01
    assert rows["Lambda, 2 requests and their authorizer"] == pytest.approx(
        1000 * (4 * 0.2e-6 + gb_s * 0.0000166667)
    )


def test_an_idle_month_pays_for_keys_alarms_and_the_sweeper() -> None:
    rows = per_idle_month(CALLS, GIVEN, alarm_metrics=11, custom_metrics=8, keys=4, queues_read=2)
    assert rows["8 metrics of the service"] == pytest.approx(2.4)
    assert rows["X-Ray, a trace of each sweep"] == pytest.approx(43_200 * 5e-6)
    assert rows["4 KMS keys"] == 4
    assert rows["alarms over 11 metrics"] == pytest.approx(1.1)
    assert rows["its 32 reads"] == pytest.approx(43_200 * 32 * 0.125e-6)
    assert rows["Lambda's polls of the dead queues"] == pytest.approx(2 * 15 * 43_200 * 0.4e-6)


def test_what_the_service_tells_is_counted_where_it_is_declared() -> None:
    """Every metric of its own that an alarm or the dashboard has is paid for."""
    seen = read_template(OBSERVABILITY)["Resources"]
    alarms = {one["Properties"].get("MetricName") for one in seen.values() if one["Type"].endswith("Alarm")}
    ours = {*Metric, "Gateway5xx"}
    assert {"Gateway5xx", *Metric} - {Metric.OPERATIONS_ENDED} <= alarms
    assert resources_of_the_core()["custom_metrics"] == len(ours)


def test_x_ray_is_priced_as_long_as_it_is_on_by_default() -> None:
    assert read_template(CORE)["Parameters"]["Tracing"]["Default"] == "Active"
    rows = per_thousand_operations(CALLS, GIVEN)
    assert rows["X-Ray, 4 traces"] == pytest.approx(1000 * 4 * 5e-6)


def test_the_page_says_where_its_prices_come_from() -> None:
    assert f"given on {GIVEN['date']} and not fetched" in page(CALLS, GIVEN, {"x": 1.0})


@pytest.mark.slow
def test_the_page_is_what_is_counted_now() -> None:
    assert PAGE.read_text(encoding="utf-8") == written(), "run: make cost"
