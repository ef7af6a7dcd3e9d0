"""What is counted, where it is kept, and how CloudWatch is told."""

from __future__ import annotations

import json

import pytest

from tensafe.api.openapi import PUBLIC_PATHS
from tensafe.metrics.counters import SERIES_MAX, Counters, from_json, to_json
from tensafe.metrics.emf import EmfMetrics
from tensafe.metrics.port import Metric, NoMetrics, Series, domain_label
from tensafe.metrics.requests import PROBES, Answered, ServerErrors


def test_counts_add_up_and_levels_are_set() -> None:
    kept = Counters()
    for value in (1.0, 2.0):
        kept.add(Metric.LEASE_LOST, value)
        kept.set(Metric.BUDGET_USED, value / 4, domain="a")
    kept.add(Metric.OPERATIONS_ENDED, kind="save", outcome="completed")
    assert kept.series() == [
        Series(Metric.LEASE_LOST, (), 3.0),
        Series(Metric.BUDGET_USED, (("domain", "a"),), 0.5),
        Series(Metric.OPERATIONS_ENDED, (("kind", "save"), ("outcome", "completed")), 1.0),
    ]
    told = json.loads(json.dumps(to_json(kept.series())))
    assert from_json(told) == kept.series()
    assert from_json([*told, ["OfALaterRelease", {}, 1.0]]) == kept.series()
    assert NoMetrics().series() == []


def test_a_process_keeps_only_so_many_series() -> None:
    kept = Counters()
    for number in range(SERIES_MAX + 5):
        kept.set(Metric.BUDGET_USED, 1.0, domain=str(number))
    kept.set(Metric.BUDGET_USED, 2.0, domain="0")
    assert len(kept.series()) == SERIES_MAX
    assert kept.series()[0].value == 2.0


def test_cloudwatch_is_told_in_its_own_format() -> None:
    lines: list[str] = []
    metrics = EmfMetrics("tensafe-prod", lines.append)
    metrics.set(Metric.OPERATION_AGE_S, 12.5)
    metrics.add(Metric.LEASE_LOST, run="r")
    age, lost = (json.loads(line) for line in lines)
    (directive,) = age["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "TenSafe"
    assert directive["Dimensions"] == [["service"]]
    assert directive["Metrics"] == [{"Name": "OperationAgeSeconds", "Unit": "Seconds"}]
    assert (age["service"], age["OperationAgeSeconds"]) == ("tensafe-prod", [12.5])
    assert (lost["LeaseLost"], lost["run"]) == ([1.0], "r")
    assert lost["_aws"]["CloudWatchMetrics"][0]["Metrics"] == [{"Name": "LeaseLost", "Unit": "Count"}]


@pytest.mark.parametrize(("status", "counted"), [(200, 0), (429, 0), (500, 1), (503, 1)])
def test_answers_that_are_our_fault_are_counted(status: int, counted: int) -> None:
    kept = Counters()
    ServerErrors(kept).answered(Answered("/v1/x", "GET", status, 0.1))
    assert len(kept.series()) == counted


@pytest.mark.parametrize("route", sorted(PROBES))
def test_a_probe_that_hears_the_truth_is_nobodys_failure(route: str) -> None:
    kept = Counters()
    ServerErrors(kept).answered(Answered(route, "GET", 503, 0.1))
    assert kept.series() == []


def test_every_probe_is_a_public_route_of_the_application() -> None:
    assert PROBES <= PUBLIC_PATHS


def test_a_domain_is_not_named() -> None:
    label = domain_label("acme", "patients")
    assert len(label) == 12
    assert label == domain_label("acme", "patients") != domain_label("acmep", "atients")
